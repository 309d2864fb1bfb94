// The knobs: model, way, method, main knob, training budget, second step. All of it is drawn from the
// methods' declarations.
const form = h('form', {className: 'knobs', onsubmit: e => e.preventDefault()});

const lastStep = () => ce.state.steps.at(-1);
const idleIn = step => idle(ce.data.methods, ce.state.steps, ce.state.steps.indexOf(step));
const mainOf = step =>
  ce.method(step.method)
    .params.find(p => p.main && effective(p, ce.values(step)) && !idleIn(step).includes(p.name));
const ofFamily = family => ce.data.methods.filter(m => m.family === family);
const first = methods => (methods.find(m => m.first) ?? methods[0]).name;

// The second step that is offered: one that rounds what a pruning left, else a training that repairs. Steps
// that change neither size nor quality for the better are in the list, but nobody is led to them.
const trains = method => Object.keys(method.full).length > 0;
const offered = methods => methods.find(m => m.first) ?? methods.find(trains);

// What may follow a step: methods that accept the format it stores.
function after(step) {
  const {stores} = ce.method(step.method), takes = method => method.after.includes(stores);
  const follows = onlyFactors(ce.values(step)) ? justRounds : takes;
  return ce.data.methods.filter(m => m.family !== 'original' && follows(m));
}

// A second step that no longer fits the first goes.
function fit() {
  const [one, two] = ce.state.steps;
  if (two && !after(one).some(m => m.name === two.method)) ce.state.steps.pop();
}

function put(step, name, value) {
  ce.memory[step.method] = {...ce.memory[step.method], [name]: value};
  ce.write();
}

function choose(i, method) {
  ce.state.steps[i] = {method};
  fit();
  changed();
}

// The form anew; what was open or had the focus keeps it.
function drawKnobs() {
  const held = document.activeElement?.id, folds = () => [...form.querySelectorAll('details[data-k]')];
  const open = Object.fromEntries(folds().map(fold => [fold.dataset.k, fold.open]));
  const [one] = ce.state.steps, {family} = ce.method(one.method);
  form.replaceChildren(h('h2', {className: 'sr'}, t('controls.title')), modelField(), tiles(family),
    picker(0, ofFamily(family)), about(one.method), knob(0), budget(0), second(), advanced(), settings());
  for (const fold of folds()) fold.open = open[fold.dataset.k] ?? false;
  if (held) document.getElementById(held)?.focus({preventScroll: true});
}

const label = (text, help, id) => h('label', {htmlFor: id}, text,
  help ? h('span', {className: 'q', tabIndex: 0, 'data-tip': help, 'aria-label': help}, '?') : '');

// What each family's best run is, in words, as soon as the front has them.
let bestOf = {};
function tellBest(families) {
  bestOf = families;
  for (const [family, words] of Object.entries(families)) {
    const line = form.querySelector(`.tile:has(#family-${family}) .best-of`);
    if (line) line.textContent = words;
  }
}

function tiles(chosen) {
  const families = [...new Set(ce.data.methods.map(m => m.family))];
  families.sort((a, b) => (a === 'original') - (b === 'original'));
  const radio = family => h('input', {
    type: 'radio',
    name: 'family',
    id: `family-${family}`,
    value: family,
    checked: family === chosen,
    onchange: () => choose(0, first(ofFamily(family))),
    onclick: () => ce.light(family === ce.state.family || family === 'original' ? '' : family),
  });
  const tile = family =>
    h('label', {className: 'tile'}, radio(family), h('span', {className: `swatch ${family}`}),
      h('span', {}, h('b', {}, t(`family.${family}`)), h('small', {}, t(`family.${family}.sub`)),
        h('small', {className: 'best-of'}, bestOf[family] ?? '')));
  return h('fieldset', {className: 'tiles'}, h('legend', {}, t('controls.family')), families.map(tile));
}

function picker(i, methods) {
  const id = i ? 'then' : 'method', {method} = ce.state.steps[i];
  const line = h('p', {className: 'line'}, t(`method.${method}.line`));
  if (methods.length < 2) return i ? '' : line;
  const pick = h('select', {id, onchange: e => choose(i, e.target.value)},
    optionList(methods.map(m => [m.name, t(`method.${m.name}`)]), method));
  return h(
    'div', {className: 'field'}, label(t(i ? 'controls.then' : 'controls.method'), '', id), pick, line);
}

const shown = (name, v) => SHARES.includes(name) ? `${Math.round(100 * v)} %` : String(+(+v).toFixed(4));
const knobWords = (name, v) => ce.has(`value.${name}`) ? t(`value.${name}`, {v: shown(name, v)}) : '';

function knob(i) {
  const step = ce.state.steps[i], p = ce.method(step.method).params.find(x => x.main);
  if (!p) return '';
  const silent = idleIn(step);
  if (silent.includes(p.name)) {
    const names = silent.map(name => t(`param.${name}`)).join(t('comma'));
    return h('p', {className: 'quiet idle'}, t('controls.idle', {names}));
  }
  const values = ce.values(step), value = values[p.name], on = effective(p, values), id = `knob-${i}`;
  const unit = p.unit === 'bits' ? h('small', {}, t('value.bits.unit')) : '';
  const big = h('output', {className: 'big', htmlFor: id}, shown(p.name, value), unit);
  const range = h('input', {
    id,
    type: 'range',
    min: p.lo,
    max: p.hi,
    step: p.step,
    value,
    disabled: !on,
    'aria-valuetext': knobWords(p.name, value),
    oninput: e => {
      const v = Number(e.target.value);
      put(step, p.name, v);
      big.firstChild.textContent = shown(p.name, v);
      e.target.setAttribute('aria-valuetext', knobWords(p.name, v));
      if (step === lastStep()) foresee(v);
      weigh(120);
    },
    onkeydown: async e => {
      if (e.key !== 'Enter') return;
      e.preventDefault();
      if (await weigh()) start();
    },
  });
  return h('div', {className: `knob${on ? '' : ' off'}`},
    h('div', {className: 'knob-head'}, label(t(`param.${p.name}`), t(`param.${p.name}.help`), id), big),
    range,
    h('div', {className: 'ends', 'aria-hidden': 'true'}, h('span', {}, t(`param.${p.name}.low`)),
      h('span', {}, t(`param.${p.name}.high`))),
    on ? '' : h('p', {className: 'quiet'}, t('controls.no_effect')));
}

// A training's short budget is its defaults; the full one is what the paper spends (Method.full). Both set
// the main knob too, which may be moved afterwards.
function budget(i) {
  const step = ce.state.steps[i], {full, params} = ce.method(step.method), id = `budget-${i}`;
  if (!Object.keys(full).length) return '';
  const {all, now} = budgets(full, params, ce.values(step));
  const tokens = values => values[TOKENS_OF_TRAINING]
    ? t('controls.budget.tokens', {tokens: compact(values[TOKENS_OF_TRAINING])})
    : '';
  const names = Object.entries(all).map(([name, values]) => [name, t(`budget.${name}`) + tokens(values)]);
  const onchange = e => {
    for (const [name, value] of Object.entries(all[e.target.value])) put(step, name, value);
    changed();
  };
  return h('div', {className: 'field'}, label(t('controls.budget'), t('controls.budget.help'), id),
    h('select', {id, onchange}, optionList(names, now)));
}

// The budgets to choose from, each with its values, and which of them these values are; "own" is of neither.
function budgets(full, params, values) {
  const own = params.filter(p => p.name in full);
  const all = {short: Object.fromEntries(own.map(p => [p.name, p.default])), full};
  const now = Object.keys(all).find(name => own.every(p => p.main || values[p.name] === all[name][p.name]));
  return now ? {all, now} : {all: {...all, own: {}}, now: 'own'};
}

function second() {
  const [one, two] = ce.state.steps, next = after(one);
  const linklike = (className, onclick, words) =>
    h('button', {type: 'button', className: `linklike${className}`, onclick}, words);
  if (two) {
    const remove = linklike('', () => {
      ce.state.steps.pop();
      changed();
    }, t('controls.remove_step'));
    return h('div', {className: 'second'}, picker(1, next), knob(1), budget(1), remove);
  }
  const help = offered(next);
  if (!help || ce.method(one.method).family === 'original') return '';
  return h('div', {className: 'offer'},
    linklike(' add', () => choose(1, help.name), t('controls.add_step', {method: t(`method.${help.name}`)})),
    h('p', {className: 'quiet'}, t(trains(help) ? 'controls.add_step.repairs' : 'controls.add_step.rounds')));
}
