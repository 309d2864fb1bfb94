// What fits: a model, a memory and a context, and the server's table of the ways that fit.
const OWN = 'own';  // The choice of a memory of one's own.
const wish = {
  model: '',
  typed: false,
  machine: OWN,
  gigabytes: 8,
  context: 8192,
  cache_bits: 16,
  sizes: null
};
const plan = newest(what => ce.ask(server.ask_plan, what));
const form = h('form', {
  className: 'plan-form',
  onsubmit: e => {
    e.preventDefault();
    show();
  }
});
const answer = h('div', {className: 'plan-answer', 'aria-live': 'polite'});
let options = [], planned = '';  // The ways of the newest answer, and the model that they are for.

// What the server is asked. A machine's bandwidth goes along only with the machine's own memory.
function asked({model, typed, machine, gigabytes, context, cache_bits, sizes}, machines) {
  const known = machines.find(m => m.key === machine);
  return {
    ...(typed ? {sizes} : {model}),
    memory_bytes: known ? known.memory_bytes : gigabytes * 1e9,
    context,
    cache_bits,
    bandwidth: known ? known.bandwidth : 0,
  };
}

async function show(options_ = {}) {
  answer.setAttribute('aria-busy', 'true');
  const {model} = wish;
  const got = await plan(asked(wish, ce.data.machines), options_);
  if (!got) return;
  answer.removeAttribute('aria-busy');
  options = got.options;
  planned = model;
  answer.innerHTML = got.error || got.html;
}

const soon = () => show({after: 150});
const field = (name, control, wide) => h('div', {className: wide ? 'field wide' : 'field'},
  h('label', {htmlFor: `plan-${name}`}, t(`tab.plan.${name}`)), control);

function number(name, value, lo, hi, set) {
  return h('input', {
    id: `plan-${name}`,
    type: 'number',
    min: lo,
    max: hi,
    step: 'any',
    value,
    required: true,
    oninput: e => {
      if (e.target.validity.valid) {
        set(Number(e.target.value));
        soon();
      }
    },
  });
}

function draw() {
  const {data} = ce, choose = (name, redraw) => e => {
    wish[name] = typeof wish[name] === 'number' ? Number(e.target.value) : e.target.value;
    if (redraw) draw();
    show();
  };
  const onchange = e => {
    Object.assign(wish, {model: e.target.value, typed: e.target.value === OWN});
    if (wish.typed) wish.sizes ??= firstSizes();
    draw();
    show();
  };
  const model =
    h('select', {id: 'plan-model', onchange}, modelOptions(data.models, wish.typed ? OWN : wish.model),
      ce.model(wish.model) || wish.typed ? '' : h('option', {value: wish.model, selected: true}, wish.model),
      h('option', {value: OWN, selected: wish.typed}, t('tab.plan.by_sizes')));
  const hub = h('input', {
    id: 'plan-hub',
    type: 'text',
    spellcheck: false,
    autocapitalize: 'off',
    placeholder: 'owner/name',
    value: ce.model(wish.model) || wish.typed ? '' : wish.model,
    onchange: e => {
      const name = e.target.value.trim();
      if (!name) return;
      Object.assign(wish, {model: name, typed: false});
      draw();
      show();
    },
  });
  const machines = [...data.machines.map(m => [m.key, m.title]), [OWN, t('tab.plan.own')]];
  const known = data.machines.find(m => m.key === wish.machine), held = document.activeElement?.id;
  form.replaceChildren(field('model', model), field('hub', hub),
    field('machine',
      h('select', {id: 'plan-machine', onchange: choose('machine', true)},
        optionList(machines, wish.machine))),
    wish.machine === OWN
      ? field('memory', number('memory', wish.gigabytes, 0.1, 1e5, n => { wish.gigabytes = n; }))
      : '',
    field('context', number('context', wish.context, 1, 1e7, n => { wish.context = Math.round(n); })),
    field('cache',
      h('select', {id: 'plan-cache', onchange: choose('cache_bits')},
        optionList([16, 8, 4].map(v => [v, t('setting.bits', {v})]), wish.cache_bits))),
    wish.typed ? sizes() : '', known ? sources(known) : '');
  if (held) document.getElementById(held)?.focus({preventScroll: true});
}

// How fast a machine reads, and the documents that say so and how much memory it has.
function sources({title: machine, bandwidth, memory_source: first, bandwidth_source: second}) {
  const links = [first, ...first.title === second.title ? [] : [second]].flatMap(
    ({title, url}, i) => [i ? ' · ' : ' ', h('a', {href: url, target: '_blank', rel: 'noopener'}, title)]);
  return h('p', {className: 'quiet sources'}, t('tab.plan.reads', {machine, rate: bandwidth / 1e9}), links);
}

// A way of the table becomes the choice of the knobs.
function use(recipe) {
  ce.use({model: planned, recipe});
  ce.say('model');
  ce.setTab('explore');
}

answer.addEventListener('click', e => {
  const button = e.target.closest('button');
  if (!button) return;
  const {use: way, run, model, act} = button.dataset;
  if (way !== undefined) use(options[Number(way)]);
  else if (run) {
    ce.setTab('explore');
    ce.select(run, 'plan');
  } else if (model) {
    Object.assign(wish, {model, typed: false});
    draw();
    show();
  } else if (act) answer.replaceChildren();
});
ce.ready.then(() => {
  wish.model = ce.data.plan.model;
  wish.machine = ce.data.plan.machine;
  root.replaceChildren(
    h('h2', {}, t('tab.plan.title')), h('p', {className: 'quiet'}, t('tab.plan.line')), form, answer);
  const open = () => {
    if (ce.tab === 'plan' && !answer.childNodes.length) show();
  };
  draw();
  ce.on('tab', open);
  ce.on('lang', () => {
    root.querySelector('h2').textContent = t('tab.plan.title');
    root.querySelector('p').textContent = t('tab.plan.line');
    draw();
    if (answer.childNodes.length) show();
  });
  open();
});
