// Rounding one column after another, alone or with the columns still to come making up for it.
import {ruler} from '../rounding/lesson.js';

const DAMPING = 0.01, PAUSE_MS = 700, NARROW = 560;

// U with H^-1 = U^T U, of H + damping * its mean diagonal (compression/second_order.py, inverse_factor).
export function inverseFactor(gram, damping = DAMPING) {
  const n = gram.length, more = damping * gram.reduce((sum, row, i) => sum + row[i], 0) / n;
  // The order is reversed, so that one factor L and its inverse are enough: U = J L^-1 J.
  const at = (i, j) => gram[n - 1 - i][n - 1 - j] + (i === j ? more : 0);
  const L = gram.map(() => Array(n).fill(0)), inverse = gram.map(() => Array(n).fill(0));
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = at(i, j);
      for (let k = 0; k < j; k++) sum -= L[i][k] * L[j][k];
      L[i][j] = i === j ? Math.sqrt(sum) : sum / L[j][j];
    }
  }
  for (let j = 0; j < n; j++) {
    for (let i = j; i < n; i++) {
      let sum = i === j ? 1 : 0;
      for (let k = j; k < i; k++) sum -= L[i][k] * inverse[k][j];
      inverse[i][j] = sum / L[i][i];
    }
  }
  return inverse.map(row => [...row].reverse()).reverse();
}

// ||D X||^2 of D [rows][n], from the Gram matrix of X.
export function outputError(difference, gram) {
  let sum = 0;
  for (const d of difference) {
    for (let i = 0; i < d.length; i++)
      for (let j = 0; j < d.length; j++) sum += d[i] * gram[i][j] * d[j];
  }
  return sum;
}

// The weights before the first column and after each (compression/second_order.py, compensate; one ruler a
// row).
export function states(weights, gram, bits, makeUp) {
  const U = inverseFactor(gram), n = gram.length, rulers = weights.map(row => ruler(row, bits));
  const out = [weights];
  for (let c = 0; c < n; c++) {
    out.push(out[c].map((row, r) => {
      const value = rulers[r].round(row[c]), error = (row[c] - value) / U[c][c];
      return row.map((w, j) => j === c ? value : j > c && makeUp ? w - error * U[c][j] : w);
    }));
  }
  return out;
}

const WAYS = ['nearest', 'gptq'];

export default function lesson(kit, data) {
  const {t, h, s, text, chart, digits} = kit, {weights, gram} = data, n = gram.length;
  let bits = 3, step = 0, way = 'gptq', timer = 0, all;
  function work() {
    all = Object.fromEntries(WAYS.map(name => {
      const list = states(weights, gram, bits, name === 'gptq');
      const whole = outputError(weights, gram);
      return [
        name, {
          list,
          errors: list.map(
            now => 100 * outputError(now.map((row, r) => row.map((w, j) => w - weights[r][j])), gram) / whole)
        }
      ];
    }));
  }
  work();
  function go(to) {
    step = to;
    buttons.forEach((b, i) => b.setAttribute('aria-pressed', String(i < step)));
    kit.redraw();
  }
  const stop = () => clearInterval(timer);
  function play() {
    stop();
    if (kit.calm) {
      go(n);
      return;
    }
    go(step === n ? 0 : step);
    timer = setInterval(() => {
      go(step + 1);
      if (step === n) stop();
    }, PAUSE_MS);
  }
  const buttons = Array.from({length: n}, (_, i) => h('button', {
    type: 'button',
    className: 'plain',
    'aria-pressed': 'false',
    textContent: String(i + 1),
    'aria-label': t('round', {n: i + 1}),
    onclick: () => {
      stop();
      go(step === i + 1 ? i : i + 1);
    },
  }));

  // Each weight as it is by now; a bar says how far it is from the original.
  function matrix(width) {
    const wide = Math.min(width / n, 46), high = 30, now = all[way].list[step];
    const most = Math.max(...WAYS.flatMap(
      name => all[name].list[n].flatMap((row, r) => row.map((w, j) => Math.abs(w - weights[r][j])))));
    const svg =
      s('svg', {class: 'lesson-svg', width: wide * n, height: high * n + 20, 'aria-hidden': 'true'});
    svg.append(s('path', {class: 'band', d: `M0 20h${wide * step}v${high * n}h${- wide * step}z`}));
    let bars = '';
    for (let j = 0; j < n; j++)
      svg.append(text(
        wide * (j + 0.5), 13, String(j + 1), {'text-anchor': 'middle', class: j < step ? 'strong' : ''}));
    now.forEach((row, r) => row.forEach((w, j) => {
      const x = wide * j, middle = 20 + high * (r + 0.5), by = (w - weights[r][j]) / most * (high / 2 - 2);
      bars += `M${(x + wide - 7).toFixed(1)} ${middle.toFixed(1)}h4v${(-by).toFixed(1)}h-4z`;
      svg.append(text(x + (wide - 8) / 2, middle + 4, w.toFixed(2).replace('-', '−'),
        {'text-anchor': 'middle', class: j < step ? 'small strong' : 'small'}));
    }));
    svg.append(s('path', {class: way === 'gptq' ? 'quantization' : 'original', d: bars}));
    return svg;
  }
  function errors(width) {
    const top = Math.max(...WAYS.flatMap(name => all[name].errors));
    const c = chart({
      width,
      height: 260,
      right: 96,
      x: {lo: 0, hi: n, label: t('x'), ticks: Array.from({length: n + 1}, (_, i) => [i, String(i)])},
      y: {lo: 0, hi: 1.1 * top, label: t('y')}
    });
    const ends = WAYS.map(name => c.y(all[name].errors[step]));
    if (Math.abs(ends[0] - ends[1]) < 15) ends[ends[0] <= ends[1] ? 0 : 1] = Math.max(...ends) - 15;
    WAYS.forEach((name, i) => {
      const kind = name === 'gptq' ? 'quantization' : 'original',
            points = all[name].errors.slice(0, step + 1).map((e, k) => [c.x(k), c.y(e)]);
      c.add(kit.line(points, {class: `line ${kind}`}),
        points.map(([cx, cy]) => s('circle', {class: kind, cx, cy, r: 3})),
        step ? text(points[step][0] + 8, ends[i] + 4, t(`way.${name}`), {class: 'strong'}) : '');
    });
    return c.svg;
  }

  return {
    controls: [
      h('fieldset', {className: 'lesson-choice gptq-columns'}, h('legend', {}, t('columns')), buttons),
      kit.button(t('play'), play),
      kit.button(t('again'),
        () => {
          stop();
          go(0);
        }),
      kit.choice({
        label: t('shown'),
        value: way,
        onchange: v => { way = v; },
        options: [...WAYS].reverse().map(w => [w, t(`way.${w}`)])
      }),
      kit.slider({
        label: t('bits'),
        lo: 2,
        hi: 4,
        value: bits,
        oninput: v => {
          bits = Math.round(v);
          work();
        }
      }),
    ],
    about: () => t('about',
      {n: step, nearest: digits(all.nearest.errors[step], 2), gptq: digits(all.gptq.errors[step], 2)}),
    close: stop,
    draw(width) {
      const beside = width >= NARROW, left = beside ? 46 * n : width;
      return h('div', {},
        h('div', {className: 'gptq-figure'}, matrix(left), errors(beside ? width - left - 20 : width)),
        h('p', {className: 'figure-words'}, t('about', {
          n: step,
          nearest: digits(all.nearest.errors[step], 2),
          gptq: digits(all.gptq.errors[step], 2)
        })));
    },
  };
}
