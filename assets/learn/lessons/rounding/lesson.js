// A stretch of one real row, its rulers, and where each weight goes.
const LARGEST = 64;

// A group's ruler: scale and zero point, the zero on a mark (compression/quantization/rtn.py, asymmetric).
export function ruler(group, bits) {
  const low = Math.min(0, ...group), high = Math.max(0, ...group), top = 2 ** bits - 1;
  const scale = (high - low) / top || 1, zero = Math.round(-low / scale);
  return {
    scale,
    zero,
    top,
    round: w => (Math.min(Math.max(Math.round(w / scale) + zero, 0), top) - zero) * scale
  };
}

export function rounded(weights, bits, size) {
  const out = [], rulers = [];
  for (let i = 0; i < weights.length; i += size) {
    const group = weights.slice(i, i + size), own = ruler(group, bits);
    rulers.push(own);
    out.push(...group.map(own.round));
  }
  return {out, rulers};
}

const middle = list => [...list].map(Math.abs).sort((a, b) => a - b)[Math.floor(list.length / 2)];

export default function rounding(kit, data) {
  const {t, digits, chart, rect, s} = kit, n = data.weights.length;
  let bits = 3, size = 64, times = 1;
  const typical = middle(data.weights), place = kit.one('place', [...data.weights.keys()], Math.floor(n / 3));
  const weights = () => data.weights.map((w, i) => i === place ? w * times : w);
  const mean = (a, b) => a.reduce((sum, w, i) => sum + Math.abs(w - b[i]), 0) / a.length;
  const stored = () => digits(bits + (16 + bits) / size, 3);
  const error = () => {
    const w = weights();
    return digits(100 * mean(w, rounded(w, bits, size).out) / typical, 2);
  };
  return {
    controls: [
      kit.slider({label: t('bits'), lo: 2, hi: 8, value: bits, oninput: v => { bits = v; }}),
      kit.choice({
        label: t('group'),
        value: size,
        onchange: v => { size = v; },
        options: [[16, '16'], [64, '64'], [n, t('group.row', {n})]]
      }),
      kit.slider({
        label: t('planted'),
        lo: 1,
        hi: LARGEST,
        log: true,
        value: times,
        format: v => t('times', {times: digits(v, 2)}),
        oninput: v => { times = v; }
      }),
    ],
    about: () => t('error', {error: error(), bpw: stored()}),
    draw(width) {
      const w = weights(), {out, rulers} = rounded(w, bits, size);
      const most = 1.08 * Math.max(...w.map(Math.abs));
      const c = chart({
        width,
        height: 280,
        x: {lo: 0, hi: n, label: t('x', data.facts)},
        y: {lo: -most, hi: most, label: t('y')}
      });
      const step = (c.x(n) - c.x(0)) / n;
      rulers.forEach(({scale, zero, top}, g) => {
        const x = c.x(g * size), wide = step * Math.min(size, n - g * size);
        if (top <= 31) {
          for (let k = 0; k <= top; k++) {
            const y = c.y((k - zero) * scale);
            c.add(s('path', {class: 'mark-line', d: `M${x + 1} ${y}h${wide - 2}`}));
          }
        } else
          c.add(rect(x + 1, c.y((top - zero) * scale), wide - 2,
            c.y(-zero * scale) - c.y((top - zero) * scale), {class: 'band'}));
        if (g) c.add(s('path', {class: 'group-line', d: `M${x} ${c.box.top}V${c.box.bottom}`}));
      });
      w.forEach((v, i) => {
        const x = c.x(i + 0.5);
        c.add(s('path', {class: 'moved', d: `M${x} ${c.y(v)}V${c.y(out[i])}`}), s('circle', {
          class: i === place && times > 1 ? 'dot planted' : 'dot',
          cx: x,
          cy: c.y(out[i]),
          r: Math.max(1.3, Math.min(2.6, step * 0.7))
        }));
      });
      return kit.h('div', {}, c.svg,
        kit.h(
          'p', {className: 'figure-words'}, t('error', {error: error(), bpw: stored()}), ' ', t('legend')));
    },
  };
}
