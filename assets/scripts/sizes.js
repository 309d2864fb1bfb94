// A model that has no name here, by its sizes: what its config.json says.
const SIZES = [
  // [name, smallest, largest]
  ['layers', 1, 1000],
  ['hidden', 1, 1e6],
  ['heads', 1, 1024],
  ['kv_heads', 1, 1024],
  ['head_size', 1, 4096],
  ['feed_forward', 1, 1e6],
  ['vocabulary', 1, 1e7],
];

// The sizes that the form begins with: those of a model of seven billion parameters.
const firstSizes = () => ({
  architecture: 'llama',
  layers: 32,
  hidden: 4096,
  heads: 32,
  kv_heads: 8,
  head_size: 128,
  feed_forward: 14336,
  vocabulary: 128256,
  tied: false,
});

function sizes() {
  const own = wish.sizes, set = name => n => { own[name] = Math.round(n); };
  const choose = (name, value) => {
    own[name] = value;
    show();
  };
  const architecture =
    h('select', {id: 'plan-architecture', onchange: e => choose('architecture', e.target.value)},
      optionList(ce.data.architectures.map(a => [a, a]), own.architecture));
  const tied = h('input',
    {id: 'plan-tied', type: 'checkbox', checked: own.tied, onchange: e => choose('tied', e.target.checked)});
  return h('fieldset', {className: 'sizes'}, h('legend', {}, t('tab.plan.sizes')),
    h('div', {className: 'grid'}, field('architecture', architecture),
      SIZES.map(([name, lo, hi]) => field(name, number(name, own[name], lo, hi, set(name)))),
      h('div', {className: 'field check'}, tied, h('label', {htmlFor: 'plan-tied'}, t('tab.plan.tied')))));
}
