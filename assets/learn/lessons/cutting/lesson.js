// Half of 16 weights must go: by hand, and by three methods on the same inputs. Then what a cut model saves.
const DAMPING = 0.01;  // share of the mean diagonal (compression/pruning/sparsegpt.py)
const METHODS = ['magnitude', 'wanda', 'sparsegpt'];

// ||(w - w') X||^2 / ||w X||^2 for one row and the Gram matrix of its inputs (compression/second_order.py).
export function outputError(weights, left, gram) {
  const n = weights.length,
        power = v => v.reduce((sum, a, i) => sum + v.reduce((s, b, j) => s + a * b * gram[i * n + j], 0), 0);
  return power(weights.map((w, i) => w - left[i])) / power(weights);
}

// U, upper, with U^T U the inverse of the damped Gram matrix (second_order.inverse_factor).
export function inverseFactor(gram, damping = DAMPING) {
  const n = Math.sqrt(gram.length), last = n - 1, diagonal = [...Array(n).keys()].map(i => gram[i * n + i]);
  const mean = diagonal.reduce((a, b) => a + b) / n;
  // Cholesky's L of the matrix in reverse order, then the inverse of L in reverse order again.
  const at = (i, j) =>
    gram[(last - i) * n + last - j] + (i === j ? damping * mean + (diagonal[last - i] === 0 ? mean : 0) : 0);
  const lower = [...Array(n)].map(() => Array(n).fill(0)),
        inverse = [...Array(n)].map(() => Array(n).fill(0));
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = at(i, j);
      for (let k = 0; k < j; k++) sum -= lower[i][k] * lower[j][k];
      lower[i][j] = i === j ? Math.sqrt(sum) : sum / lower[j][j];
    }
    for (let j = 0; j <= i; j++) {
      let sum = i === j ? 1 : 0;
      for (let k = j; k < i; k++) sum -= lower[i][k] * inverse[k][j];
      inverse[i][j] = sum / lower[i][i];
    }
  }
  return [...Array(n).keys()].map(i => [...Array(n).keys()].map(j => inverse[last - i][last - j]));
}

// Whether each place goes: the lowest half of every group of neighbours (patterns.py); of equals the earlier
// goes.
export function lowest(scores, group) {
  const gone = Array(scores.length).fill(false);
  for (let g = 0; g < scores.length; g += group) {
    const order = [...Array(group).keys()].sort((a, b) => scores[g + a] - scores[g + b] || a - b);
    for (const place of order.slice(0, group / 2)) gone[g + place] = true;
  }
  return gone;
}

// What each method leaves of a row: {gone, left}. group: 4 for two of four, all weights for any place.
export const cut = {
  magnitude: (weights, gram, group) => kept(weights, lowest(weights.map(Math.abs), group)),
  wanda: (weights, gram, group) =>
    kept(weights, lowest(weights.map((w, i) => Math.abs(w) * loud(gram, i, weights.length)), group)),
  // One input after another: what a cut changes in the output, the inputs after it make up for.
  sparsegpt(weights, gram, group) {
    const n = weights.length, factor = inverseFactor(gram), live = [...weights], gone = Array(n).fill(false);
    for (let c = 0; c < n; c++) {
      if (c % group === 0) {
        const score = k => gram[k * (n + 1)] === 0 ? 0 : (live[k] / factor[k][k]) ** 2;
        const scores = live.slice(c, c + group).map((_, i) => score(c + i));
        lowest(scores, group).forEach((go, i) => { gone[c + i] = go; });
      }
      const error = gone[c] ? live[c] / factor[c][c] : 0;
      if (gone[c]) live[c] = 0;
      for (let j = c + 1; j < n; j++) live[j] -= error * factor[c][j];
    }
    return {gone, left: live};
  },
};
const kept = (weights, gone) => ({gone, left: weights.map((w, i) => gone[i] ? 0 : w)});
const loud = (gram, i, n) => Math.sqrt(gram[i * (n + 1)]);

export default function cutting(kit, data) {
  const {h, s, t, digits, rect, text} = kit, {weights, gram} = data, n = weights.length, half = n / 2;
  const norms = weights.map((_, i) => loud(gram, i, n)), LEFT = 8, RIGHT = 8;
  let own = Array(n).fill(false), who = 'hand', pattern = 'unstructured', structure = 'single', open = false;
  const group = () => pattern === '2:4' ? 4 : n;
  const now = () => who === 'hand' ? kept(weights, own) : cut[who](weights, gram, group());
  const percent = left => 100 * outputError(weights, left, gram);
  const count = () => own.filter(Boolean).length;

  const boxes = weights.map((w, i) => h('input', {
    type: 'checkbox',
    'aria-label': t('box', {i: data.facts.begin + i, w: digits(w, 2), norm: digits(norms[i], 2)}),
    onchange: () => {
      toggle(i);
      kit.redraw();
    },
  }));
  const row = h('div', {className: 'cutting-boxes', role: 'group', 'aria-label': t('boxes')}, boxes);
  row.style.paddingInline = `${LEFT}px ${RIGHT}px`;
  const show = () => now().gone.forEach((gone, i) => { boxes[i].checked = gone; });
  const cutters = kit.choice({
    label: t('who'),
    value: who,
    onchange: v => {
      who = v;
      show();
    },
    options: ['hand', ...METHODS].map(name => [name, t(`who.${name}`)])
  });
  const patterns = kit.choice({
    label: t('pattern'),
    value: pattern,
    onchange: v => {
      pattern = v;
      show();
    },
    options: [['unstructured', t('pattern.any')], ['2:4', t('pattern.two_of_four')]]
  });
  const structures = kit.choice({
    label: t('structure'),
    value: structure,
    onchange: v => { structure = v; },
    options: Object.keys(data.structures).map(name => [name, t(`structure.${name}`)])
  });
  // What is compared stands under the boxes and choices that it belongs to.
  const panels = [0, 1].map(() => h('div', {className: 'cutting-panel'}));
  const later = [cutters, patterns, panels[0], structures, panels[1]];
  for (const control of later) control.hidden = true;

  // A click on what a method cut goes on by hand from there.
  function toggle(i) {
    if (who !== 'hand') {
      own = now().gone;
      who = 'hand';
      cutters.querySelector('input').checked = true;
    }
    own[i] = !own[i];
    show();
  }

  // Weights upwards, their inputs downwards; what is cut is an outline.
  function rows(width) {
    const {gone, left} = now(), step = (width - LEFT - RIGHT) / n, middle = 122, tall = 96, deep = 66;
    const top = 1.05 * Math.max(...weights.map(Math.abs), ...left.map(Math.abs)),
          loudest = Math.max(...norms);
    const svg = s('svg', {class: 'lesson-svg', width, height: middle + deep + 24, 'aria-hidden': 'true'});
    weights.forEach((w, i) => {
      const x = LEFT + i * step, wide = Math.max(4, step - 4), long = v => Math.abs(v) / top * tall;
      svg.append(rect(x + 2, middle - long(w), wide, long(w), {class: gone[i] ? 'cut-away' : 'was'}),
        gone[i] ? '' : rect(x + 2, middle - long(left[i]), wide, long(left[i]), {class: 'bar pruning'}),
        rect(x + 2, middle + 4, wide, norms[i] / loudest * deep, {class: gone[i] ? 'input silent' : 'input'}),
        rect(x, 0, step, middle + deep, {
          class: 'hit',
          onclick: () => {
            toggle(i);
            kit.redraw();
          }
        }));
      if (group() === 4 && i && i % 4 === 0)
        svg.append(s('path', {class: 'group-line', d: `M${x} 14V${middle + deep}`}));
    });
    svg.append(text(LEFT, 11, t('above')), text(LEFT, middle + deep + 20, t('below')));
    return svg;
  }
  function compared(width) {
    const list = METHODS.map(name => ({
      name: t(`who.${name}`),
      value: percent(cut[name](weights, gram, group()).left),
      className: 'pruning'
    }));
    if (count() === half) list.unshift({name: t('yours'), value: percent(kept(weights, own).left)});
    list.push({name: t('best'), value: data.best[pattern], className: 'original'});
    return kit.bars(width, list.map(r => ({...r, words: `${digits(r.value, 2)} %`})),
      {row: 24, room: Math.min(210, width * 0.47)});
  }
  function saved(width) {
    const {weights: left, bytes, seconds, perplexity} = data.structures[structure];
    const bar = (name, value) => ({name, value, words: `${digits(100 * value, 2)} %`, className: 'pruning'});
    const times = seconds.map((v, i) => bar(t('seconds', {i: i + 1}), v));
    const rows = [bar(t('left'), left), bar(t('bytes'), bytes), ...times];
    const list = data.machines.map((m, i) => `(${i + 1}) ${m}`).join(', ');
    return [
      h('p', {className: 'figure-words'},
        t('saved', {perplexity: digits(perplexity), original: digits(data.facts.original)})),
      kit.bars(width, rows, {most: 1, row: 24}),
      h('p', {className: 'figure-words'}, seconds.length ? t('machines', {list}) : t('untimed')),
    ];
  }
  const said = () => open
    ? t('lost', {n: now().gone.filter(Boolean).length, of: n, error: digits(percent(now().left), 2)})
    : t('count', {n: count(), of: half});
  return {
    controls: [row, ...later],
    about: said,
    guess: () => count() === half ? percent(kept(weights, own).left) : null,
    hold: () => own,
    take(gone) {
      own = gone;
      show();
    },
    revealed() {
      open = true;
      for (const control of later) control.hidden = false;
    },
    draw(width) {
      if (open)
        [compared(width), saved(width)].forEach((parts, i) => panels[i].replaceChildren(...[parts].flat()));
      return h('div', {}, rows(width), h('p', {className: 'figure-words'}, said()));
    },
  };
}
