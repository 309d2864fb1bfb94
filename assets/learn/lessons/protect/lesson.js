// Forty real columns, three of which may stay as they are: the learner's choice, then each method's.
const METHODS = ['size', 'awq', 'owq'], MARKS = {
  size: 'W',
  awq: 'A',
  owq: 'O'
};

// The symmetric matrix of a lower triangle, row by row.
export function square(triangle, n) {
  const at = (i, j) => triangle[i * (i + 1) / 2 + j];
  return Array.from({length: n}, (_, i) => Array.from({length: n}, (_, j) => i >= j ? at(i, j) : at(j, i)));
}

// Per cent of the output's error that goes if these columns aren't rounded: the products of the columns'
// errors sum up to 100, and those without a kept column stay (evaluation/learning/lessons/protect.py,
// removed).
export function removed(products, columns) {
  let left = 0;
  const kept = new Set(columns);
  products.forEach((row, i) => {
    if (!kept.has(i))
      row.forEach((v, j) => {
        if (!kept.has(j)) left += v;
      });
  });
  return 100 - left;
}

export default function lesson(kit, data) {
  const {t, h, s, text, chart, digits} = kit, {loud, peaks, size, chosen, single, facts} = data;
  const n = loud.length;
  const products = square(data.products, n);
  let open = false,
      mine = kit.shuffled('start', [...loud.keys()]).slice(0, facts.kept);  // the earliest choice first
  const share = () => removed(products, mine);
  function toggle(i) { take(mine.includes(i) ? mine.filter(k => k !== i) : [...mine, i].slice(-facts.kept)); }
  function take(columns) {
    mine = columns;
    boxes.forEach((box, k) => { box.checked = mine.includes(k); });
    kit.redraw();
  }
  const boxes =
    loud.map((_, i) => h('input', {type: 'checkbox', checked: mine.includes(i), onchange: () => toggle(i)}));
  const most = {up: Math.max(...peaks), down: Math.max(...size), single: Math.max(...single)};
  const listed = () => [...mine].sort((a, b) => a - b).map(i => i + 1).join(', ') || '–';
  const told = () =>
    t('chosen', {list: listed()}) + (open ? ` ${t('share', {share: digits(share(), 3)})}` : '');

  // Up: how loud a column's inputs are, on average and by their squares. Down: how large its weights are.
  function columns(width) {
    const c = chart({
      width,
      height: open ? 232 : 190,
      left: 4,
      right: 4,
      top: 22,
      bottom: open ? 62 : 20,
      x: {lo: 0, hi: n, ticks: false},
      y: {lo: -1, hi: 1, ticks: false, label: t('up')}
    });
    const wide = (c.x(n) - c.x(0)) / n;
    for (let i = 0; i < n; i++) {
      const x = c.x(i) + wide * 0.15, kind = mine.includes(i) ? 'pruning' : 'quantization';
      const up = c.y(loud[i] / most.up), peak = c.y(peaks[i] / most.up), down = c.y(-size[i] / most.down),
            zero = c.y(0);
      c.add(kit.rect(x, peak, wide * 0.7, zero - peak, {class: kind, opacity: 0.35}),
        kit.rect(x, up, wide * 0.7, zero - up, {class: kind}),
        kit.rect(x, zero, wide * 0.7, down - zero,
          {class: mine.includes(i) ? 'pruning' : 'original', opacity: 0.55}));
      if (mine.includes(i))
        c.add(text(x + wide * 0.35, peak - 4, String(i + 1), {'text-anchor': 'middle', class: 'strong'}));
      if (open) {
        // Who keeps the column, and how many of its single weights SpQR keeps.
        METHODS.filter(m => chosen[m].includes(i))
          .forEach((m, k) => c.add(text(x + wide * 0.35, c.box.bottom + 14 + 14 * k, MARKS[m],
                     {'text-anchor': 'middle', class: 'strong'})));
      }
    }
    if (open) {
      const floor = c.box.bottom + 60;
      const bar = (v, i) => [c.x(i) + wide * 0.15, wide * 0.7, -18 * v / most.single].map(x => x.toFixed(1));
      const outline = ([x, across, up]) => `M${x} ${floor}h${across}v${up}h-${across}z`;
      c.add(s('path', {class: 'distillation', d: single.map((v, i) => outline(bar(v, i))).join('')}));
    }
    c.add(text(c.box.right, c.box.bottom + (open ? 0 : 15), open ? '' : t('down'), {'text-anchor': 'end'}));
    return c.svg;
  }
  kit.figure.addEventListener('click', e => {
    const svg = e.target.closest('.protect-columns');
    if (!svg) return;
    const {left, width} = svg.getBoundingClientRect();
    toggle(Math.min(n - 1, Math.max(0, Math.floor(((e.clientX - left) - 4) / (width - 8) * n))));
  });

  const rows = () => [...mine.length ? [{name: t('own'), value: share(), className: 'pruning'}] : [],
    {name: t('chance'), value: data.removed.chance, className: 'original'},
    ...METHODS.map(m => ({name: t(`method.${m}`), value: data.removed[m], className: 'quantization'})),
    {name: t('method.spqr'), value: data.removed.spqr, className: 'distillation'},
    {name: t('best'), value: data.removed.best, className: 'original'},
  ].map(r => ({...r, words: `${digits(r.value)} %`}));

  return {
    controls: [h('fieldset', {className: 'lesson-choice protect-boxes'}, h('legend', {}, t('boxes')),
      boxes.map((box, i) => h('label', {}, box, h('span', {}, String(i + 1)))))],
    about: told,
    guess: share,
    hold: () => mine,
    take,
    revealed() { open = true; },
    draw(width) {
      const svg = columns(width);
      svg.classList.add('protect-columns');
      return h('div', {}, svg,
        open ? kit.bars(width, rows(), {row: 25, room: Math.min(230, width * 0.46)}) : '',
        h('p', {className: 'figure-words'}, told()));
    },
  };
}
