// Bytes of weights, of keys and values, and of training; and how many machines of one kind hold them.
const BITS = [32, 16, 8, 4, 3, 2], TYPED = 'typed', HEIGHT = 120, SIDE = 118, MOST = 2000;
const COLOURS = {
  weights: 'quantization',
  cache: 'distillation',
  gradients: 'pruning',
  adam: 'low_rank'
};

// Bytes of a model. Keys and values: compression/bundle.py, 16 bits each. Training: a gradient and Adam's two
// moments for each parameter, moments in 32 bits; weights below 32 bits need a copy in 32 bits that the small
// steps add up in.
export function sum({parameters, cache = 0}, {bits, context = 0, batch = 1, train = false}) {
  return {
    weights: parameters * bits / 8,
    cache: cache * context * batch,
    gradients: train ? parameters * (bits > 16 ? 4 : 2) : 0,
    adam: train ? parameters * (8 + (bits < 32 ? 4 : 0)) : 0,
  };
}

// The largest boxes of which n fit into the width and the height: {columns, side}.
export function grid(n, width, height) {
  for (let columns = Math.max(1, Math.floor(width / SIDE));; columns++) {
    const side = Math.min(width / columns, SIDE);
    if (Math.ceil(n / columns) * side <= height) return {columns, side};
  }
}

// The outline of a box, for a path.
function box(...sizes) {
  const [x, y, wide, tall = wide] = sizes.map(v => v.toFixed(1));
  return `M${x} ${y}h${wide}v${tall}h-${wide}z`;
}

export default function lesson(kit, data) {
  const {t, h, s, digits} = kit, gb = v => t('gb', {n: digits(v / 1e9)});
  const models = Object.fromEntries(data.models.map(m => [m.name, m])),
        machines = Object.fromEntries(data.machines.map(m => [m.key, m]));
  let open = false, model = kit.one('model', data.models.filter(m => m.name !== data.asked)).name,
      card = data.card;
  let bits = 16, context = 2048, batch = 1, train = false, typed = 7;
  const own = () => models[model] ?? {parameters: typed * 1e9};
  const parts = () => sum(own(), {bits, context: own().cache ? context : 0, batch, train});
  const total = () => Object.values(parts()).reduce((a, b) => a + b, 0);
  const need = () => Math.ceil(total() / machines[card].bytes);

  const pick = kit.choice({
    label: t('model'),
    value: model,
    onchange: v => { model = v; },
    options: [...data.models.map(m => [m.name, m.title]), [TYPED, t('typed')]]
  });
  const asked = pick.querySelectorAll('label')[data.models.findIndex(m => m.name === data.asked)];
  const count = h('input', {
    type: 'number',
    id: 'sum-typed',
    min: 0.001,
    max: 10000,
    step: 'any',
    value: typed,
    oninput: e => {
      if (e.target.value > 0 && e.target.value <= 1e4) {
        typed = Number(e.target.value);
        kit.redraw();
      }
    }
  });
  const field =
    h('p', {className: 'sum-typed'}, h('label', {htmlFor: 'sum-typed'}, t('billions')), ' ', count);

  return {
    controls: [
      pick,
      field,
      kit.slider({
        label: t('context'),
        lo: 128,
        hi: 131072,
        log: true,
        value: context,
        format: v => digits(Math.round(v), 2),
        oninput: v => { context = v; }
      }),
      kit.slider({label: t('batch'), lo: 1, hi: 64, value: batch, oninput: v => { batch = Math.round(v); }}),
      kit.choice({
        label: t('bits'),
        value: bits,
        onchange: v => { bits = v; },
        options: BITS.map(b => [b, String(b)])
      }),
      kit.check({label: t('train'), value: train, onchange: v => { train = v; }}),
      kit.choice({
        label: t('machine'),
        value: card,
        onchange: v => { card = v; },
        options: data.machines.map(m => [m.key, m.title])
      }),
    ],
    // GPT-175B is what is asked; its own sum comes with the answer.
    revealed() {
      if (open) return;
      open = true;
      asked.querySelector('input').click();
    },
    about: () => t('about', {total: gb(total()), n: digits(need(), 6), machine: machines[card].title}),
    draw(width) {
      field.hidden = model !== TYPED;
      asked.hidden = !open && model !== data.asked;
      const machine = machines[card], n = need(), all = parts(), drawn = Math.min(n, MOST),
            {columns, side} = grid(drawn, width, HEIGHT);
      const inner = side * 0.88,
            svg = s('svg', {class: 'lesson-svg', width, height: HEIGHT, 'aria-hidden': 'true'});
      // Every kind of bytes fills the boxes where the kind before it ended, from the floor of a box up.
      let at = 0;
      for (const [name, bytes] of Object.entries(all)) {
        let d = '';
        const end = Math.min(at + bytes, drawn * machine.bytes);
        for (let k = Math.floor(at / machine.bytes); k * machine.bytes < end; k++) {
          const [from, to] = [at, end].map(b => Math.min(Math.max(b / machine.bytes - k, 0), 1));
          const x = k % columns * side, y = Math.floor(k / columns) * side;
          d += box(x, y + inner * (1 - to), inner, inner * (to - from));
        }
        at += bytes;
        if (d) svg.append(s('path', {class: COLOURS[name], d}));
      }
      const outline = (_, k) => box(k % columns * side, Math.floor(k / columns) * side, inner);
      svg.append(s('path', {class: 'axis', d: Array.from({length: drawn}, outline).join('')}));
      return h('div', {}, svg,
        h('p', {className: 'sum-legend'},
          Object.entries(all)
            .filter(([, v]) => v)
            .map(([name, v]) => h('span', {}, h('i', {className: `swatch ${COLOURS[name]}`}),
                   `${t(`part.${name}`)} ${gb(v)}`))),
        h('p', {className: 'figure-words'},
          t('about', {total: gb(total()), n: digits(n, 6), machine: machines[card].title}),
          drawn < n ? ` ${t('more', {n: digits(drawn, 6)})}` : '', own().cache ? '' : ` ${t('no_cache')}`,
          context > own().positions ? ` ${t('beyond', {n: digits(own().positions, 6)})}` : ''));
    },
  };
}
