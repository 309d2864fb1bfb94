// Pairs of stored results: each by itself with its error, and the difference window by window.
const WORDS = ['better', 'worse', 'unclear'], LEVEL = 0.95;

// Student's distribution and the paired difference: evaluation/verdict.py.
export function shareBelow(t, freedom) {
  const angle = Math.atan(t / Math.sqrt(freedom)), cosine = Math.cos(angle), odd = freedom % 2;
  let term = odd ? cosine : 1, total = freedom > 1 ? term : 0;
  for (let k = 2 + odd; k < freedom - 1; k += 2) {
    term *= cosine * cosine * (k - 1) / k;
    total += term;
  }
  return (1 + (odd ? 2 / Math.PI * (angle + Math.sin(angle) * total) : Math.sin(angle) * total)) / 2;
}
const known = new Map();
export function quantile(share, freedom) {
  const key = `${share} ${freedom}`;
  if (!known.has(key)) {
    let low = 0, high = 1;
    while (shareBelow(high, freedom) < share) high *= 2;
    for (let i = 0; i < 60; i++) {
      const middle = (low + high) / 2;
      if (shareBelow(middle, freedom) < share) low = middle;
      else high = middle;
    }
    known.set(key, high);
  }
  return known.get(key);
}
// Mean of numbers and half of its 95 % interval.
export function interval(list) {
  const n = list.length, mean = list.reduce((a, b) => a + b, 0) / n;
  const error = Math.sqrt(list.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1) / n);
  return {mean, margin: quantile((1 + LEVEL) / 2, n - 1) * error};
}
export function paired(ours, control) {
  const {mean, margin} = interval(ours.map((v, i) => v - control[i])), ratio = Math.exp(mean);
  return {
    mean,
    margin,
    ratio,
    ratioMargin: ratio * margin,
    word: Math.abs(mean) > margin ? mean < 0 ? 'better' : 'worse' : 'unclear'
  };
}

export default function believe(kit, data) {
  const {t, h, s, digits, chart, text, line} = kit, {models, facts} = data, judged = data.pairs.length - 1;
  const pairs = [...kit.shuffled('pairs', data.pairs.slice(0, judged)), data.pairs[judged]];
  let number = 'perplexity', windows = facts.windows, open = false;
  const answers = Array(judged).fill(null);
  const losses = name => models[name].losses.slice(0, windows);
  const truth = k => paired(models[pairs[k][0]].losses, models[pairs[k][1]].losses);
  const choices = Array.from({length: judged}, (_, k) => kit.choice({
    label: t('judge', {n: k + 1, ours: t(`name.${pairs[k][0]}`), control: t(`name.${pairs[k][1]}`)}),
    options: WORDS.map(word => [word, t(`word.${word}`)]),
    onchange: v => { answers[k] = v; },
  }));
  // Where a model stands by the chosen number, with the ends of its interval.
  const at = {
    perplexity: name => {
      const {mean, margin} = interval(losses(name));
      return [mean - margin, mean, mean + margin].map(Math.exp);
    },
    kl: name => Array(3).fill(models[name].kl),
    same: name => Array(3).fill(models[name].same),
  };
  const axes = {
    perplexity: {lo: 22, hi: 130, log: true},
    kl: {lo: 0, hi: 1.4},
    same: {lo: 40, hi: 100},
  };
  const about = ([a, b]) => t('about', {
    ours: t(`name.${a}`),
    control: t(`name.${b}`),
    a: digits(at[number](a)[1]),
    b: digits(at[number](b)[1]),
  });
  const said = k => {
    const [a, b] = pairs[k], found = paired(losses(a), losses(b));
    return t('paired',
      {word: t(`word.${found.word}`), ratio: digits(found.ratio, 4), margin: digits(found.ratioMargin, 2)});
  };
  return {
    controls: [
      kit.choice({
        label: t('number'),
        value: number,
        onchange: v => { number = v; },
        options: ['perplexity', 'kl', 'same'].map(v => [v, t(`number.${v}`)])
      }),
      kit.slider({
        label: t('windows'),
        lo: 4,
        hi: facts.windows,
        value: windows,
        format: v => digits(v),
        oninput: v => { windows = v; }
      }),
      h('div', {className: 'judges'}, choices),
    ],
    guess: () => answers.includes(null) ? null : answers.filter((word, k) => word === truth(k).word).length,
    hold: () => answers,
    take: held => held.forEach((word, k) => {
      answers[k] = word;
      choices[k].set(word);
    }),
    revealed() {
      open = true;
      choices.forEach((one, k) => one.querySelectorAll('input').forEach((input, i) => {
        input.disabled = true;
        input.parentElement.classList.toggle('right', WORDS[i] === truth(k).word);
      }));
    },
    about: () => pairs.map(about).join(' ') + (open ? ` ${pairs.map((_, k) => said(k)).join('; ')}` : ''),
    draw(width) {
      const row = open ? 66 : 50, top = 20, first = name => at[number](name).map(c.x);
      const c = chart({
        width,
        height: top + row * pairs.length + 36,
        top,
        left: 10,
        bottom: 36,
        y: {lo: 0, hi: 1, ticks: false},
        x: {...axes[number], label: t(`number.${number}`)}
      });
      const [, mark] = first('original'), right = mark > width * 0.7;
      c.add(text(mark, 11, t('original'), {'text-anchor': right ? 'end' : 'start'}));
      pairs.forEach(([a, b], k) => {
        const y = top + k * row + 14;
        c.add(
          text(0, y, t('pair', {n: k + 1, ours: t(`name.${a}`), control: t(`name.${b}`)}), {class: 'name'}),
          line([[mark, y + 6], [mark, y + 31]], {class: 'line original'}));
        [[a, y + 13, ''], [b, y + 24, ' other']].forEach(([name, down, more]) => {
          const [low, middle, high] = first(name), colour = models[name].family;
          c.add(line([[low, down], [high, down]], {class: `line ${colour}${more}`}),
            s('circle', {class: `${colour}${more}`, cx: middle, cy: down, r: 4.5}));
        });
        if (open) c.add(text(0, y + 44, said(k)));
      });
      return c.svg;
    },
  };
}
