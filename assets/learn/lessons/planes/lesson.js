// A product of rounded weights without multiplications: planes of plus and minus, and sums that are looked
// up.
import {ruler} from '../rounding/lesson.js';

const AT_ONCE = 4;

// Codes on one ruler as planes (compression/quantization/lut_gemm.py, convert): w = offset + sum of alpha[k]
// * signs[k].
export function planes(weights, bits) {
  const {scale, zero, round} = ruler(weights, bits),
                      codes = weights.map(w => Math.round(round(w) / scale) + zero);
  return {
    rounded: weights.map(round),
    alpha: Array.from({length: bits}, (_, k) => scale * 2 ** (k - 1)),
    offset: scale * ((2 ** bits - 1) / 2 - zero),
    signs: Array.from({length: bits}, (_, k) => codes.map(c => c >> k & 1 ? 1 : -1)),
  };
}

// All sums of plus and minus of four inputs; bit t of a key says the sign of input t.
export const table = inputs => Array.from(
  {length: 2 ** inputs.length}, (_, key) => inputs.reduce((sum, x, i) => sum + (key >> i & 1 ? x : -x), 0));
export const keyOf = signs => signs.reduce((key, sign, i) => key | (sign > 0 ? 1 << i : 0), 0);

// The product of the first `chunks` fours: {plain, looked}.
export function product(weights, inputs, bits, chunks) {
  const {alpha, offset, signs, rounded} = planes(weights, bits);
  const sums = alpha.map(() => 0);
  let all = 0, plain = 0;
  for (let c = 0; c < chunks; c++) {
    const from = c * AT_ONCE, x = inputs.slice(from, from + AT_ONCE), sum = table(x);
    signs.forEach((row, k) => { sums[k] += sum[keyOf(row.slice(from, from + AT_ONCE))]; });
    all += sum[sum.length - 1];
    x.forEach((v, i) => { plain += v * rounded[from + i]; });
  }
  return {plain, looked: alpha.reduce((total, a, k) => total + a * sums[k], offset * all)};
}

export default function lesson(kit, data) {
  const {t, h, s, text, digits} = kit, {weights, inputs} = data, chunks = weights.length / AT_ONCE;
  let bits = 3, chunk = 0;
  const fixed = v => v.toFixed(2).replace('-', '−');
  function told() {
    const {plain, looked} = product(weights, inputs, bits, chunk + 1);
    return t('about',
      {n: (chunk + 1) * AT_ONCE, looked: digits(looked), plain: digits(plain), multiplied: bits + 1});
  }
  return {
    controls: [
      kit.slider({
        label: t('chunk'),
        lo: 1,
        hi: chunks,
        value: 1,
        format: v => t('four', {from: (v - 1) * AT_ONCE + 1, to: v * AT_ONCE}),
        oninput: v => { chunk = Math.round(v) - 1; }
      }),
      kit.slider({label: t('bits'), lo: 2, hi: 4, value: bits, oninput: v => { bits = Math.round(v); }}),
    ],
    about: told,
    draw(width) {
      const {alpha, signs, offset, rounded} = planes(weights, bits), from = chunk * AT_ONCE;
      const x = inputs.slice(from, from + AT_ONCE), sums = table(x);
      const keys = signs.map(row => keyOf(row.slice(from, from + AT_ONCE)));
      // Above: four weights, their signs in each plane, and what each plane looks up.
      const cell = Math.min(64, (width - 150) / (AT_ONCE + 1)), row = 26, left = 78;
      const svg = s('svg', {class: 'lesson-svg', width, height: row * (bits + 3) + 8, 'aria-hidden': 'true'});
      const put = (r, name, cells, kind, more = '') =>
        svg.append(text(0, row * r + 18, name, {class: 'name'}),
          ...cells.map(
            (c, i) => text(left + cell * (i + 0.5), row * r + 18, c, {'text-anchor': 'middle', class: kind})),
          more && text(left + cell * AT_ONCE + 8, row * r + 18, more, {class: 'strong'}));
      put(0, t('input'), x.map(fixed), '');
      put(1, t('weight'), rounded.slice(from, from + AT_ONCE).map(fixed), 'strong');
      signs.forEach((list, k) => put(2 + k, `${digits(alpha[k], 2)} ×`,
                      list.slice(from, from + AT_ONCE).map(v => v > 0 ? '+' : '−'), 'strong',
                      t('looks', {key: keys[k] + 1})));
      put(2 + bits, `${digits(offset, 2).replace('-', '−')} ×`, x.map(() => '+'), '',
        t('looks', {key: sums.length}));
      // Below: the table of all sums.
      const across = width < 560 ? 4 : 8, wide = width / across, high = 40;
      const sheet = s(
        'svg', {class: 'lesson-svg', width, height: high * sums.length / across + 4, 'aria-hidden': 'true'});
      sums.forEach((sum, key) => {
        const left = key % across * wide, y = Math.floor(key / across) * high;
        const used = keys.includes(key) || key === sums.length - 1;
        sheet.append(
          kit.rect(left + 1, y + 1, wide - 4, high - 4, {rx: 4, class: used ? 'planes-used' : 'band'}),
          text(left + 8, y + 16, String(key + 1)),
          text(left + wide - 10, y + 29, fixed(sum), {'text-anchor': 'end', class: used ? 'strong' : ''}));
      });
      return h('div', {}, svg, h('p', {className: 'figure-words'}, t('table')), sheet,
        h('p', {className: 'figure-words'}, told()));
    },
  };
}
