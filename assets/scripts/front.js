// The front with its sentences: what each run costs, which one to take, and what is on the axes.
let now = null, left = '';  // The server's answer; the set that a selected run made the figure leave.
const title = h('h2'), hint = h('p', {className: 'ghost-words', role: 'status'});
const notice = h('p', {className: 'notice', role: 'status'}), sets = h('div', {className: 'sets'});
const filters = h('div', {className: 'filters'}), foot = h('div', {className: 'foot'});
const empty = h('p', {className: 'empty'}), remarks = h('p', {className: 'quiet'});
const axes = h('details', {className: 'axes'});
const head = h('div', {className: 'front-head'}, title, hint);

function looked() {
  const {model, x, y, protocol, settings, budget, run, deploy} = ce.state;
  return {model, x, y, protocol, settings, budget, selected: run, deploy};
}
const ask = () => ce.ask(server.ask_front, looked());
const front = newest(ask);

async function load() {
  const {state} = ce, before = now;
  if (!now) {
    empty.textContent = t('front.loading');
    empty.hidden = false;
  }
  const got = await front();
  if (!got) return;
  if (got.error) {
    remarks.hidden = false;
    remarks.innerHTML = got.error;
    return;
  }
  // Another set than before, which nobody chose: the page says so and offers the way back.
  const moved = before?.model === state.model && before.set !== got.set && state.protocol !== got.set;
  left = moved ? before.set : '';
  now = {...got, model: state.model};
  scene = now.scene;
  // After a change of set or filter the card is of a run that is drawn.
  if (state.run && !now.ids.includes(state.run) && state.protocol === now.set) {
    state.run = '';
    ce.write();
  }
  if (!state.run && now.best && !ce.problems.length) state.shown = now.best;
  tellAll();
  drawPlot();
  if (!state.run && now.best && !ce.problems.length) ce.say('preselect', {id: now.best});
}

function tellAll() {
  title.textContent = t('front.title');
  plot.setAttribute('aria-label', now.alt);
  plot.classList.toggle('bare', now.empty);
  ce.say('headline', now);
  ce.say('families', now.families);
  empty.textContent = t(ce.state.deploy && now.ids.length ? 'front.empty_deploy' : 'front.empty');
  empty.hidden = !now.empty;
  remarks.replaceChildren(now.remarks.join(' '), ...measureHere());
  remarks.hidden = !remarks.textContent;
  answer.hidden = !now.answer;
  const typing = answer.contains(document.activeElement) && document.activeElement.tagName === 'INPUT';
  if (!typing) tell(now.answer);
  drawSets();
  drawFilters();
  drawFoot();
  drawAxes();
}

// A run that can be timed on this machine; its button is a card's (card.js).
function measureHere() {
  if (!now.time_here) return [];
  const {id, text} = now.time_here;
  return [' ', h('button', {className: 'linklike', 'data-act': 'again', 'data-id': id}, text)];
}

function chooseSet(name) {
  Object.assign(ce.state, {protocol: name, run: ''});
  ce.write();
  load();
}

function drawSets() {
  const name = Object.fromEntries(now.sets)[now.set], many = now.sets.length > 1;
  const onchange = e => chooseSet(e.target.value);
  const label =
    h('label', {htmlFor: many ? 'set' : null}, tip(t('front.protocol'), t('front.protocol.help')));
  sets.hidden = !now.sets.length;
  sets.replaceChildren(label,
    many ? h('select', {id: 'set', onchange}, optionList(now.sets, now.set)) : h('span', {}, name ?? ''));
  const back = () =>
    h('button', {className: 'linklike', onclick: () => chooseSet(left)}, t('front.switch_back'));
  notice.hidden = !left;
  notice.replaceChildren(...left ? [t('front.switched', {name}), ' ', back()] : []);
}

function drawFilters() {
  const {state} = ce, held = document.activeElement?.id;
  const deploy = h('input', {
    type: 'checkbox',
    id: 'deploy',
    checked: state.deploy,
    onchange: e => {
      state.deploy = e.target.checked;
      ce.write();
      load();
    }
  });
  const all = h('button', {className: 'linklike', onclick: () => ce.light('')}, t('front.all_families'));
  const word = tip(t('front.deploy'), t('front.deploy.help'));
  const lit = state.family ? [t('front.lit', {name: t(`family.${state.family}`)}), ' ', all] : '';
  filters.replaceChildren(
    h('label', {htmlFor: 'deploy', className: 'check'}, deploy, word), h('span', {role: 'status'}, lit));
  if (held === 'deploy') filters.querySelector('#deploy').focus();
}

function drawFoot() {
  const act = (onclick, text, more) => h('button', {className: 'linklike', onclick, ...more}, text),
        help = t('front.save.html');
  foot.replaceChildren(act(asTable, t('front.as_table')),
    h('span', {}, t('front.save'), ' ', act(() => save('svg'), 'SVG'), ' · ', act(() => save('png'), 'PNG'),
      ' · ', act(saveZoomed, 'HTML', {'data-tip': help, 'aria-description': help})));
}

// The picture's twin: the table of all runs.
function asTable() {
  const fold = document.querySelector('#runs details');
  if (!fold) return;
  fold.open = true;
  fold.scrollIntoView({block: 'start'});
  fold.querySelector('summary').focus();
}

function drawAxes() {
  const {state, data} = ce, {open} = axes, names = data.axes.map(key => [key, t(`metric.${key}`)]);
  const choose = (key, value) => {
    state[key] = value;
    ce.write();
    load();
  };
  const axis = (key, text) => h('label', {}, tip(text, t(`metric.${now[key]}.help`)),
    h('select', {onchange: e => choose(key, e.target.value)}, optionList(names, now[key])));
  axes.replaceChildren(h('summary', {}, t('front.axes')),
    h('div', {className: 'grid'}, axis('x', t('front.x')), axis('y', t('front.y'))),
    h('p', {className: 'quiet'}, t('front.key')));
  axes.open = open;
}

document.addEventListener('click', e => {
  const button = e.target.closest?.('button[data-run]');
  if (button) ce.select(button.dataset.run, 'link');
});
ce.ready.then(() => {
  root.replaceChildren(
    head, h('div', {className: 'choices'}, sets, filters), notice, plot, foot, empty, remarks, answer, axes);
  notice.hidden = true;
  ce.on('ghost', line => {
    moveGhost(line ? line.bytes : null);
    hint.textContent = line && ce.state.x === 'file_bytes' ? line.words : '';
  });
  ce.on('lang', load);
  ce.on('model', () => {
    Object.assign(ce.state, {protocol: '', budget: 0});
    load();
  });
  ce.on('results', load);
  ce.on('select', ({id}) => {
    if (now?.ids.includes(id)) drawPlot();
    else {
      ce.state.protocol = '';
      load();
    }
  });
  ce.on('preselect', drawPlot);
  ce.on('lit', () => {
    if (now) {
      drawFilters();
      drawPlot();
    }
  });
  ce.on('tab', tab => {
    if (tab === 'explore') requestAnimationFrame(drawPlot);
  });
  load();
});
