// Three parts, three widths each: the learner spends a budget of bytes, then all 27 choices are shown as
// measured.

// All choices in the order of the table: the last part changes fastest
// (evaluation/learning/lessons/mixed.py).
export const choices = (widths, parts) =>
  parts ? choices(widths, parts - 1).flatMap(c => widths.map(w => [...c, w])) : [[]];
export const sizeOf = (choice, widths, bytes) =>
  choice.reduce((sum, w, part) => sum + bytes[part][widths.indexOf(w)], 0);

// The choice with the smallest divergence whose bytes fit; null if none does.
export function best(list, kl, widths, bytes, budget) {
  const fitting = list.map((choice, i) => i).filter(i => sizeOf(list[i], widths, bytes) <= budget);
  return fitting.length ? list[fitting.reduce((a, b) => kl[b] < kl[a] ? b : a)] : null;
}

export default function mixed(kit, data) {
  const {h, s, t, digits, chart, text} = kit, {widths, bytes, kl} = data;
  const PARTS = ['last', 'attention', 'feed_forward'];
  const list = choices(widths, PARTS.length), own = PARTS.map(() => widths[0]);
  const bytesOf = choice => sizeOf(choice, widths, bytes),
        klOf = choice => kl[list.findIndex(c => `${c}` === `${choice}`)];
  const most = bytesOf(PARTS.map(() => widths.at(-1))), least = bytesOf(PARTS.map(() => widths[0]));
  const size = v => t('mb', {n: digits(v / 1e6)});
  const LOW = 0.03;  // nats; the scale ends there
  let budget = data.budget, open = false;
  const fits = () => bytesOf(own) <= budget;
  const parts = PARTS.map((part, i) => kit.choice({
    label:
      t(`part.${part}`, {share: digits(100 * data.weights[i] / data.weights.reduce((a, b) => a + b), 2)}),
    value: own[i],
    options: widths.map(w => [w, t('bits', {n: w})]),
    onchange: v => { own[i] = v; }
  }));
  const slider = kit.slider({
    label: t('budget'),
    lo: least,
    hi: most,
    step: 1e5,
    value: budget,
    format: v => size(v),
    oninput: v => { budget = v; }
  });
  slider.hidden = true;

  function spent(width) {
    const room = Math.min(190, width * 0.36), wide = width - room - 84, row = 26;
    const rows = PARTS.map(
      (part, i) =>
        ({name: t(`name.${part}`), value: bytes[i][widths.indexOf(own[i])], className: 'quantization'}));
    rows.push({name: t('together'), value: bytesOf(own), className: fits() ? 'original' : 'pruning'});
    const svg = kit.bars(width, rows.map(r => ({...r, words: r.name === t('together') ? '' : size(r.value)})),
            {most, room, row}),
          x = room + budget / most * wide;
    svg.append(s('path', {class: 'axis', d: `M${x} ${3 * row}V${4 * row + 4}`}),
      text(x + 5, 3 * row + 20, t('limit', {size: size(budget)})));
    return svg;
  }
  function all(width) {
    const found = best(list, kl, widths, bytes, budget);
    const c = chart({
      width,
      height: 250,
      x: {lo: least / 1e6 * 0.95, hi: most / 1e6 * 1.03, label: t('x')},
      y: {lo: LOW, hi: Math.max(...kl) * 1.5, log: true, label: t('y')}
    });
    // What is lower than the axis stands on it.
    const at = choice => [c.x(bytesOf(choice) / 1e6), c.y(Math.max(klOf(choice), LOW))];
    // The name of a choice that gives every part the same width; the widest one's stands to the right.
    const named = (choice, cx, cy) => {
      const words = t('everywhere', {n: choice[0]});
      if (choice[0] === widths[0]) return text(cx + 4, cy - 9, words);
      return text(cx - 8, cy + (klOf(choice) < LOW ? -6 : 15), words, {'text-anchor': 'end'});
    };
    c.add(s('path', {class: 'group-line', d: `M${c.x(budget / 1e6)} ${c.box.top}V${c.box.bottom}`}),
      list.flatMap(choice => {
        const [cx, cy] = at(choice), same = new Set(choice).size === 1;
        return [
          s('circle', {class: same ? 'original' : 'dot', cx, cy, r: same ? 5 : 4},
            s('title', {}, `${choice.join(' · ')}: ${digits(klOf(choice))}`)),
          same && named(choice, cx, cy),
        ];
      }));
    const ring = (choice, name, r) => {
      const [cx, cy] = at(choice);
      c.add(s('circle', {class: `ring ${name}`, cx, cy, r}));
    };
    ring(own, 'own', 9);
    if (found) ring(found, 'winner', 6.5);
    const words = () =>
      t('found', {choice: found.join(' · '), size: size(bytesOf(found)), kl: digits(klOf(found))});
    return [c.svg, h('p', {className: 'figure-words'}, found ? words() : t('none'))];
  }
  const said = () => {
    const words = t(fits() ? 'fits' : 'over', {size: size(bytesOf(own)), budget: size(budget)});
    return `${words} ${open ? t('own', {kl: digits(klOf(own))}) : ''}`;
  };
  return {
    controls: [...parts, slider],
    about: said,
    guess: () => fits() ? klOf(own) : null,
    hold: () => own,
    take: held => held.forEach((w, i) => {
      own[i] = w;
      parts[i].set(w);
    }),
    revealed() {
      open = true;
      slider.hidden = false;
    },
    draw: width =>
      h('div', {}, spent(width), h('p', {className: 'figure-words'}, said()), ...open ? all(width) : []),
  };
}
