// A file of so many bytes, and what each family does to fit into it.
const FAMILIES = ['quantization', 'pruning', 'distillation', 'low_rank'];

// Bits a weight, share of the weights, layers, share of the numbers: what fits into a file beside the rest
// (word table, norms). A rounded weight shares a 16-bit scale and a zero point with its group; a kept weight
// takes 16 bits and every place a bit that says whether it is kept (compression/packed/grouped_int.py,
// bitmask.py).
export function spend(bytes, {weights, rest_bytes, layers, group}) {
  const room = Math.max(0, bytes - rest_bytes), dense = 2 * weights, full = v => Math.min(Math.max(v, 0), 1);
  return {
    quantization: full((8 * room / weights - 16 / group) / (1 + 1 / group) / 16) * 16,
    pruning: full((room - weights / 8) / dense),
    distillation: full(room / dense) * layers,
    low_rank: full(room / dense),
  };
}

export default function bytes(kit, data) {
  const {t, h, digits} = kit, {sizes, files, answers} = data;
  let size = 190e6, asked = 0, pick = 'quantization', open = false;
  const most = sizes.rest_bytes + 2 * sizes.weights;
  const whole = {quantization: 16, distillation: sizes.layers};  // what is spent on an original model
  const share = (family, spent) => spent / (whole[family] ?? 1);
  const told = (family, spent) =>
    t(`spend.${family}`, {n: whole[family] ? spent.toFixed(1) : Math.round(100 * spent)});
  const rows = () => {
    const spent = spend(size, sizes);
    return FAMILIES.map(family => ({family, spent: spent[family]}));
  };
  const slider = kit.slider({
    label: t('size'),
    lo: 90e6,
    hi: most,
    step: 1e6,
    value: size,
    format: kit.size,
    oninput: v => { size = v; }
  });
  const choose = kit.choice({
    label: t('pick'),
    value: pick,
    onchange: v => {
      pick = v;
      size = files[v];
      slider.set(size);
    },
    options: FAMILIES.map(family => [family, t(`option.${family}`)])
  });
  const question = kit.choice({
    label: t('asked'),
    value: asked,
    onchange: v => { asked = v; },
    options: answers.map(({question: words}, i) => [i, words])
  });
  const show = () => {
    for (const one of [choose, question]) one.style.display = open ? '' : 'none';
  };
  show();
  const said = (name, words) => h('div', {}, h('b', {}, name), h('p', {}, words ?? t('unrecorded')));
  return {
    controls: [slider, choose, question],
    revealed() {
      open = true;
      show();
    },
    about: () =>
      `${t('size')}: ${kit.size(size)}. ${rows().map(({family, spent}) => told(family, spent)).join('; ')}.`,
    draw(width) {
      const narrow = width < 520, room = narrow ? 92 : 120;
      const svg = kit.s('svg', {class: 'lesson-svg', width, height: 4 * 44 + 4, 'aria-hidden': 'true'}),
            wide = width - room - 4;
      rows().forEach(({family, spent}, i) => {
        const y = i * 44 + 2, own = share(family, spend(files[family], sizes)[family]);
        svg.append(kit.text(room - 8, y + 17, t(`family.${family}`), {'text-anchor': 'end', class: 'name'}),
          kit.rect(room, y + 4, wide, 16, {class: 'band', rx: 2}),
          kit.rect(room, y + 4, wide * share(family, spent), 16, {class: `bar ${family}`, rx: 2}),
          kit.line([[room + wide * own, y + 1], [room + wide * own, y + 23]], {class: 'line original'}),
          kit.text(narrow ? 0 : room, y + 36, told(family, spent)));
      });
      const {said: wrote} = answers[asked];
      return h('div', {}, svg, h('p', {className: 'figure-words'}, t('stored')),
        open &&
          h('div', {className: 'answers'}, said(t('original'), wrote.original),
            said(t(`option.${pick}`), wrote[pick])));
    },
  };
}
