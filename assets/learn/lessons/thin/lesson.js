// A real weight as two thin factors, rank by rank; and the word table as chains of small cores.

// Bytes of two factors of that rank in 16 bits, beside a matrix [out, in] (compression/low_rank/rank.py).
export const factorBytes = ([out, n], rank) => 2 * rank * (out + n);

// The share of the squared weights that the product of that rank leaves out: that of its singular values.
export function leftOut(spectrum, rank) {
  const power = list => list.reduce((sum, v) => sum + v * v, 0);
  return power(spectrum.slice(rank)) / power(spectrum);
}

export default function thin(kit, data) {
  const {h, s, t, digits, chart, line, size} = kit, {shape, step, spectrum, facts} = data;
  const n = spectrum.length;
  let rank = facts.rank - facts.rank % step, view = 'matrix';
  const full = 2 * shape[0] * shape[1], at = list => list[rank / step - 1];
  const percent = share => `${digits(100 * share, 2)} %`;
  const slider =
    kit.slider({label: t('rank'), lo: step, hi: n, step, value: rank, oninput: v => { rank = v; }});
  const views = kit.choice({
    label: t('view'),
    value: view,
    onchange: v => {
      view = v;
      slider.hidden = v !== 'matrix';
    },
    options: [['matrix', t('view.matrix')], ['table', t('view.table')]]
  });
  const FLOOR = 1e-4;

  // The singular values: what is kept is filled.
  function values(width) {
    const c = chart({
      width,
      height: 104,
      top: 18,
      bottom: 12,
      x: {lo: 0, hi: n, ticks: false},
      y: {lo: 0, hi: 1.05 * spectrum[0], label: t('spectrum')}
    });
    const area = (from, to) => `M${c.x(from)} ${c.box.bottom}${
      spectrum.slice(from, to).map((v, i) => `L${c.x(from + i).toFixed(1)} ${c.y(v).toFixed(1)}`).join('')}L${
      c.x(to)} ${c.box.bottom}Z`;
    return c.add(s('path', {class: 'band', d: area(0, n)}), s('path', {class: 'low_rank', d: area(0, rank)}));
  }
  function losses(width) {
    const c = chart({
      width,
      height: 186,
      x: {lo: 0, hi: n, label: t('x')},
      y: {
        lo: FLOOR,
        hi: 1,
        log: true,
        label: t('y'),
        ticks: [[1, '100 %'], [0.1, '10 %'], [0.01, '1 %'], [0.001, '0.1 %'], [FLOOR, '0.01 %']]
      }
    });
    const points = list =>
      list.map((v, i) => [c.x((i + 1) * step), c.y(v)]).filter(([, y]) => y <= c.box.bottom);
    const plain = points(data.plain), known = points(data.known), x = c.x(rank),
          label = Math.floor(plain.length / 4);
    return c.add(s('path', {class: 'group-line', d: `M${c.x(facts.even)} ${c.box.top}V${c.box.bottom}`}),
      kit.text(c.x(facts.even) + 5, c.box.top + 10, t('even')), line(plain, {class: 'line original'}),
      line(known, {class: 'line low_rank'}),
      kit.text(plain[label][0] + 6, plain[label][1] - 8, t('plain'), {class: 'strong'}),
      kit.text(c.box.left + 6, known[label][1] + 16, t('known'), {class: 'strong'}),
      [data.plain, data.known].map((list, i) => at(list) < FLOOR
          ? null
          : s('circle', {class: i ? 'low_rank' : 'original', cx: x, cy: c.y(at(list)), r: 5})));
  }
  const matrix = () => t('matrix', {
    rank,
    bytes: t('kb', {n: digits(factorBytes(shape, rank) / 1e3)}),
    share: percent(factorBytes(shape, rank) / full),
    weight: percent(leftOut(spectrum, rank)),
    plain: percent(at(data.plain)),
    known: percent(at(data.known))
  });

  // The bars grow with the logarithm: equal steps are equal ratios to the original's perplexity.
  function table(width) {
    const row = name => {
      const {share, off, bytes, perplexity} = data.table[name];
      const stored = t('stored', {share: percent(share), off: percent(off), bytes: size(bytes)});
      const value = Math.log(perplexity / facts.original);
      const bar = {name: '', value, words: digits(perplexity), className: 'low_rank'};
      return [
        h('p', {className: 'figure-words'}, t(`table.${name}`), ' ', stored),
        kit.bars(width, [bar], {most: Math.log(1e7), room: 4, row: 22}),
      ];
    };
    return [h('p', {className: 'figure-words'}, t('table')), ...Object.keys(data.table).flatMap(row)];
  }
  return {
    controls: [views, slider],
    about: () => view === 'matrix' ? matrix() : t('table'),
    draw: width => view === 'matrix'
      ? h('div', {}, values(width), losses(width), h('p', {className: 'figure-words'}, matrix()))
      : h('div', {}, ...table(width)),
  };
}
