// The front with its sentences: what each run costs, which one to take, and what is on the axes.
let now = null;
const title = h('h2'), hint = h('p', {className: 'ghost-words', role: 'status'});
const empty = h('p', {className: 'empty'}), remarks = h('p', {className: 'quiet'});
const answer = h('div', {className: 'answer'}), axes = h('details', {className: 'axes'});
const head = h('div', {className: 'front-head'}, title, hint);

function ask() {
  const {model, x, y, protocol, settings, budget, run} = ce.state;
  return ce.ask(server.ask_front, {model, x, y, protocol, settings, budget, selected: run});
}
const front = newest(ask);

async function load() {
  const {state} = ce;
  if (!now) { empty.textContent = t('front.loading'); empty.hidden = false; }
  const got = await front();
  if (!got) return;
  if (got.error) { remarks.hidden = false; remarks.innerHTML = got.error; return; }
  now = picture = got;
  words();
  drawPlot();
  if (state.run || !got.best || ce.problems.length) return;
  state.shown = got.best;
  ce.say('preselect', {id: got.best});
}

function words() {
  title.textContent = t('front.title');
  plot.setAttribute('aria-label', now.alt);
  plot.classList.toggle('bare', now.empty);
  ce.say('headline', now.headline);
  empty.textContent = t('front.empty');
  empty.hidden = !now.empty;
  remarks.textContent = now.remarks.join(' ');
  remarks.hidden = !now.remarks.length;
  answer.hidden = !now.answer;
  const typing = answer.contains(document.activeElement) && document.activeElement.tagName === 'INPUT';
  if (!typing) tell(now.answer);
  drawAxes();
}

function tell(html) {
  answer.innerHTML = html;
  answer.prepend(h('h3', {}, t('front.which')));
}

function drawAxes() {
  const {state, data} = ce, {open} = axes, names = data.axes.map(key => [key, t(`metric.${key}`)]);
  const choose = (label, help, pairs, value, put) => h('label', {}, tip(label, help),
    h('select', {onchange: e => { put(e.target.value); load(); }}, optionList(pairs, value)));
  const axis = (key, label) => choose(label, t(`metric.${now[key]}.help`), names, now[key], value => {
    state[key] = value;
    ce.write();
  });
  const protocol = now.protocols.length
    ? choose(t('front.protocol'), t('front.protocol.help'), now.protocols, now.protocol,
      value => { state.protocol = value; })
    : '';
  axes.replaceChildren(h('summary', {}, t('front.axes')),
    h('div', {className: 'grid'}, axis('x', t('front.x')), axis('y', t('front.y')), protocol),
    h('p', {className: 'quiet'}, t('front.key')));
  axes.open = open;
}

// The size that is asked about: at once when it is left, and while it is typed the answer alone.
const megabytes = text => Math.max(1, Number(text) || 1) * 1e6;
const answering = newest(ask);
async function refreshAnswer() {
  const got = await answering();
  if (!got || got.error) return;
  const box = answer.querySelector('input'), held = document.activeElement === box, text = box?.value;
  tell(got.answer);
  const fresh = answer.querySelector('input');
  if (held && fresh) { fresh.value = text; fresh.focus(); }
}
let typing = 0;
answer.addEventListener('input', e => {
  clearTimeout(typing);
  typing = setTimeout(() => { ce.state.budget = megabytes(e.target.value); refreshAnswer(); }, 250);
});
answer.addEventListener('change', e => { ce.state.budget = megabytes(e.target.value); load(); });

let width = innerWidth;
addEventListener('resize', () => { if (innerWidth !== width) { width = innerWidth; drawPlot(); } });
// A change of the theme changes the body's class.
new MutationObserver(() => requestAnimationFrame(drawPlot))
  .observe(document.body, {attributes: true, attributeFilter: ['class']});
document.addEventListener('click', e => {
  const button = e.target.closest?.('button[data-run]');
  if (button) ce.select(button.dataset.run, 'link');
});
ce.ready.then(() => {
  root.replaceChildren(head, plot, empty, remarks, answer, axes);
  ce.on('ghost', line => {
    moveGhost(line ? line.bytes : null);
    hint.textContent = line && ce.state.x === 'file_bytes' ? line.words : '';
  });
  ce.on('lang', load);
  ce.on('model', () => { Object.assign(ce.state, {protocol: '', budget: 0}); load(); });
  ce.on('results', load);
  ce.on('select', ({id}) => { if (now?.ids.includes(id)) ring(); else load(); });
  ce.on('preselect', ring);
  ce.on('tab', tab => { if (tab === 'explore' && drawn) requestAnimationFrame(() => Plotly.Plots.resize(plot)); });
  load();
});
