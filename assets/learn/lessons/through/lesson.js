// Training through the rounding: one weight on the staircase, eight real rows going down, and what training
// takes.
const STEPS = 80, RATE = 0.1;  // as in evaluation/learning/lessons/through.py
const ADAM = 12;               // bytes of a trained number: weight and gradient in 16 bits, two moments in 32
const TARGET = -2, PULL = 0.3;  // the mark that the loss wants, and how far a step goes towards it

// Symmetric min-max rounding of a row: marks, one scale (compression/quantization/llm_qat.py).
export function rounded(row, bits) {
  const scale = Math.max(...row.map(Math.abs)) / (2 ** (bits - 1) - 1) || 1;
  return {scale, codes: row.map(w => even(w / scale))};
}
// Halves go to the even neighbour, as torch rounds.
export function even(v) {
  const low = Math.floor(v), off = v - low;
  return off < 0.5 ? low : off > 0.5 ? low + 1 : low % 2 ? low + 1 : low;
}

export const whole = triangle =>
  triangle.map((_, i) => triangle.map((_, j) => i >= j ? triangle[i][j] : triangle[j][i]));
const dot = (a, b) => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
};
const times = (gram, v) => gram.map(row => dot(row, v));

// Error of the rounded rows' outputs in percent, before each straight-through step and after the last.
export function descent(weights, gram, steepest, bits) {
  const all = weights.reduce((sum, w) => sum + dot(times(gram, w), w), 0), latent = weights.map(w => [...w]),
        seen = [];
  for (let step = 0; step <= STEPS; step++) {
    const rate = RATE * (1 - step / STEPS) / steepest;
    let error = 0;
    latent.forEach((row, r) => {
      const {scale, codes} = rounded(row, bits), off = codes.map((code, i) => code * scale - weights[r][i]);
      const towards = times(gram, off);
      error += dot(towards, off);
      for (let i = 0; i < row.length; i++) row[i] -= rate * towards[i];
    });
    seen.push(100 * error / all);
  }
  return seen;
}

// The same error where the codes stay and each row has the scale that suits its inputs best (PEQA).
export function scalesAlone(weights, gram, bits) {
  let error = 0, all = 0;
  for (const w of weights) {
    const {codes} = rounded(w, bits), seen = times(gram, codes), scale = dot(seen, w) / dot(seen, codes);
    const off = codes.map((code, i) => scale * code - w[i]);
    error += dot(times(gram, off), off);
    all += dot(times(gram, w), w);
  }
  return 100 * error / all;
}

// Bytes of weights, gradients and moments in three kinds of fine-tuning; adapters of a rank at every matrix.
export function memory({parameters, linears, edges, rounded_bytes}, rank) {
  const adapter = ADAM * rank * edges;
  return {
    full: ADAM * parameters,
    lora: 2 * parameters + adapter,
    qlora: rounded_bytes + 2 * (parameters - linears) + adapter
  };
}

export default function through(kit, data) {
  const {t, h, s, digits, chart, text, line} = kit, gram = whole(data.gram), courses = new Map();
  const row = kit.one('row', data.weights);
  let view = 'weight', weight = row[0] / rounded(row, 3).scale, bits = 3, rank = 8, model = 1, told = '';
  const course = () => {
    if (!courses.has(bits))
      courses.set(bits, {
        ste: descent(data.weights, gram, data.steepest, bits),
        scales: scalesAlone(data.weights, gram, bits)
      });
    return courses.get(bits);
  };
  const slider = kit.slider({
    label: t('weight'),
    lo: -3.4,
    hi: 3.4,
    step: 0.01,
    value: weight,
    format: v => digits(v, 3),
    oninput: v => {
      weight = v;
      told = '';
    }
  });
  const step = slope => kit.button(t(`step.${slope}`), () => {
    const by = slope === 'true' ? 0 : PULL * (TARGET - even(weight));
    weight += by;
    slider.set(weight);
    told = t(by ? 'moved' : even(weight) === TARGET ? 'arrived' : 'stays', {by: digits(by, 2)});
  });
  const of = {
    weight: [slider, h('div', {className: 'acts'}, step('true'), step('through'))],
    rows: [kit.choice({
      label: t('bits'),
      value: bits,
      onchange: v => { bits = v; },
      options: [4, 3, 2].map(n => [n, String(n)])
    })],
    memory: [
      kit.choice({
        label: t('model'),
        value: model,
        onchange: v => { model = v; },
        options: data.models.map(({name}, i) => [i, name])
      }),
      kit.slider(
        {label: t('rank'), lo: 1, hi: 64, value: rank, format: v => digits(v), oninput: v => { rank = v; }}),
    ],
  };
  const turn = () => {
    for (const [name, parts] of Object.entries(of))
      for (const part of parts) part.style.display = name === view ? '' : 'none';
  };
  turn();

  function staircase(width) {
    const c = chart({
      width,
      height: 230,
      x: {lo: -3.5, hi: 3.5, label: t('x.weight')},
      y: {lo: -3.4, hi: 3.6, label: t('y.weight'), ticks: [-3, -2, -1, 0, 1, 2, 3].map(v => [v, String(v)])}
    });
    const marks = [-3, -2, -1, 0, 1, 2, 3], at = even(weight);
    const stairs = marks.flatMap(m => [[c.x(m - 0.5), c.y(m)], [c.x(m + 0.5), c.y(m)]]);
    const tangent = (slope, more) =>
      line([[c.x(weight - 0.8), c.y(at - 0.8 * slope)], [c.x(weight + 0.8), c.y(at + 0.8 * slope)]], more);
    return c.add(line([[c.box.left, c.y(TARGET)], [c.box.right, c.y(TARGET)]], {class: 'group-line'}),
      text(c.box.left + 4, c.y(TARGET) - 5, t('target')), line(stairs, {class: 'line original'}),
      tangent(0, {class: 'line pruning'}), tangent(1, {class: 'line quantization'}),
      s('circle', {class: 'quantization', cx: c.x(weight), cy: c.y(at), r: 6}));
  }
  function falling(width) {
    const {ste, scales} = course(), most = 1.15 * Math.max(...ste, scales);
    const c = chart({
      width,
      height: 230,
      x: {lo: 0, hi: STEPS, label: t('x.rows')},
      y: {lo: 0, hi: most, label: t('y.rows')}
    });
    let low = Infinity;
    const kept = ste.map(v => low = Math.min(low, v));
    const path = list => list.map((v, i) => [c.x(i), c.y(v)]);
    const flat = v => [[c.x(0), c.y(v)], [c.x(STEPS), c.y(v)]];
    return c.add(line(path(ste), {class: 'moved', fill: 'none'}), line(flat(ste[0]), {class: 'line pruning'}),
      line(flat(scales), {class: 'line low_rank'}), line(path(kept), {class: 'line quantization'}));
  }
  const draws = {
    weight: staircase,
    rows: falling,
    memory: width => {
      const found = memory(data.models[model], rank);
      const family = {full: 'original', lora: 'low_rank'};
      const rows = Object.entries(found).map(([name, value]) => ({
        name: t(`way.${name}`),
        value,
        words: kit.size(value),
        className: family[name] ?? 'quantization',
      }));
      return kit.bars(width, rows, {row: 52});
    },
  };
  const swatch = (name, words) => h('span', {}, h('i', {className: `swatch ${name}`}), ' ', words, ' ');
  const notes = {
    weight: () => [swatch('pruning', t('legend.true')), swatch('quantization', t('legend.through')), h('br'),
      told || t('drag')],
    rows: () => {
      const {ste, scales} = course(),
                  facts = {start: digits(ste[0]), ste: digits(Math.min(...ste)), scales: digits(scales)};
      return [
        swatch('pruning', t('legend.flat', facts)), swatch('low_rank', t('legend.scales', facts)),
        swatch('quantization', t('legend.ste', facts)), h('br'), t('kept')
      ];
    },
    memory: () => [t('counted')],
  };
  return {
    controls: [
      kit.choice({
        label: t('view'),
        value: view,
        onchange: v => {
          view = v;
          turn();
        },
        options: ['weight', 'rows', 'memory'].map(v => [v, t(`view.${v}`)])
      }),
      ...Object.values(of).flat()
    ],
    about: () => notes[view]().map(part => part.textContent ?? part).join(' '),
    draw: width => h('div', {}, draws[view](width), h('p', {className: 'figure-words'}, notes[view]())),
  };
}
