// Maxima of each channel of inputs and of weights, and what two methods do to both; errors are measured ones.
const WAYS = ['plain', 'split', 'smooth'], RULERS = ['token', 'tensor'], LEAST = 1e-5;

// SmoothQuant's factors from the maxima of inputs and weights (equation 4;
// compression/quantization/smoothquant.py).
export function smoothing(inputs, weights, alpha) {
  return inputs.map(
    (x, j) => Math.max(Math.max(x, LEAST) ** alpha / Math.max(weights[j], LEAST) ** (1 - alpha), LEAST));
}

export default function lesson(kit, data) {
  const {t, h, s, text, chart, digits} = kit, {inputs, weights, thresholds, alphas, errors} = data;
  const n = inputs.length;
  let way = 'plain', ruler = 'token', threshold = thresholds.indexOf(6), alpha = alphas.indexOf(0.5),
      open = false;

  // Maxima as the 8-bit rulers meet them: {inputs, weights, apart: channels that leave the 8 bits}.
  function sides() {
    if (way === 'split') {
      const apart = inputs.map(x => x >= thresholds[threshold]);
      return {
        inputs: inputs.map((x, j) => apart[j] ? 0 : x),
        weights: weights.map((w, j) => apart[j] ? 0 : w),
        apart
      };
    }
    const f = way === 'smooth' ? smoothing(inputs, weights, alphas[alpha]) : inputs.map(() => 1);
    return {inputs: inputs.map((x, j) => x / f[j]), weights: weights.map((w, j) => w * f[j]), apart: []};
  }
  const error = (which = way) => ({
    plain: errors[ruler].plain,
    split: errors[ruler].thresholds[threshold],
    smooth: errors[ruler].alphas[alpha],
  })[which];
  const sorted = list => [...list].sort((a, b) => a - b);
  const middle = list => sorted(list)[Math.floor(list.length / 2)];
  // Steps of the 8-bit ruler that a middling channel has, of 127.
  const steps = list => {
    const inside = list.filter(v => v > 0);
    return 127 * middle(inside) / Math.max(...inside);
  };

  const cut = kit.slider({
    label: t('threshold'),
    lo: 0,
    hi: thresholds.length - 1,
    value: threshold,
    format: i => digits(thresholds[Math.round(i)]),
    oninput: v => { threshold = Math.round(v); }
  });
  const move = kit.slider({
    label: t('alpha'),
    lo: 0,
    hi: alphas.length - 1,
    value: alpha,
    format: i => digits(alphas[Math.round(i)], 2),
    oninput: v => { alpha = Math.round(v); }
  });
  // One spike a channel, as one path; channels apart are marked above.
  function spikes(width, list, kind, apart, label) {
    const most = 1.1 * Math.max(...list), c = chart({
      width,
      height: 142,
      bottom: 8,
      x: {lo: 0, hi: n, ticks: false},
      y: {lo: 0, hi: most, label: t(label)}
    });
    const d = list.map((v, j) => `M${c.x(j + 0.5).toFixed(1)} ${c.box.bottom}V${c.y(v).toFixed(1)}`).join('');
    const marks =
      apart.flatMap((yes, j) => yes ? [`M${c.x(j + 0.5).toFixed(1)} ${c.box.bottom}V${c.box.top}`] : [])
        .join('');
    c.add(s('path', {class: 'channel-line original', d: marks, 'stroke-dasharray': '3 3'}),
      s('path', {class: `channel-line ${kind}`, d}));
    if (marks)
      c.add(text(c.box.right, c.box.top + 2, t('apart', {n: apart.filter(Boolean).length}),
        {'text-anchor': 'end', class: 'strong'}));
    return c.svg;
  }
  const bar = w => ({
    name: t(`short.${w}`),
    value: error(w),
    words: `${digits(error(w), 2)} %`,
    className: w === way ? 'quantization' : 'original',
  });
  const told = (now = sides()) =>
    t('about', {inputs: digits(steps(now.inputs), 2), weights: digits(steps(now.weights), 2)}) +
    (open ? ` ${t('error', {error: digits(error(), 2)})}` : '');

  return {
    controls: [
      kit.choice({
        label: t('way'),
        value: way,
        onchange: v => { way = v; },
        options: WAYS.map(w => [w, t(`way.${w}`)])
      }),
      cut,
      move,
      kit.choice({
        label: t('ruler'),
        value: ruler,
        onchange: v => { ruler = v; },
        options: RULERS.map(r => [r, t(`ruler.${r}`)])
      }),
    ],
    about: () => told(),
    revealed() { open = true; },
    draw(width) {
      cut.hidden = way !== 'split';
      move.hidden = way !== 'smooth';
      const now = sides();
      return h('div', {}, spikes(width, now.inputs, 'quantization', now.apart, 'inputs'),
        spikes(width, now.weights, 'distillation', now.apart, 'weights'),
        open && kit.bars(width, WAYS.map(bar), {row: 26, most: errors.tensor.plain}),
        h('p', {className: 'figure-words'}, told(now)));
    },
  };
}
