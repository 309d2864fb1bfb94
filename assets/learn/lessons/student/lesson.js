// A teacher's real chances of the next digit, and a student that has one hill only.
const LIMITS = {
  mean: [0, 9],
  width: [0.4, 5]
};
const TALL = 0.75;  // chance at the top of the figure
const FRAMES = 30;  // of the way to the best hill
const MOST = 4;     // nats that the longest bar stands for

// The student's chances of so many digits: one hill, added up to one.
export function hill(mean, width, n = 10) {
  const raw = Array.from({length: n}, (_, k) => -((k - mean) ** 2) / (2 * width * width)),
        top = Math.max(...raw);
  const up = raw.map(v => Math.exp(v - top)), sum = up.reduce((a, b) => a + b, 0);
  return up.map(v => v / sum);
}

// KL(a || b) in nats (compression/divergences.py). Infinite where b never says what a says.
export function kl(a, b) {
  return a.reduce((sum, v, k) => v ? sum + v * (b[k] ? Math.log(v / b[k]) : Infinity) : sum, 0);
}
export const MEASURES = {
  forward: (p, q) => kl(p, q),
  reverse: (p, q) => kl(q, p)
};

// One step downhill of a hill's mean and width; null where no step of this size helps.
export function step(p, {mean, width}, measure, size) {
  const lost = (m, w) => MEASURES[measure](p, hill(m, w)), now = lost(mean, width);
  const inside = (v, [lo, hi]) => Math.min(Math.max(v, lo), hi);
  const [first] =
    [[1, 0], [-1, 0], [0, 1], [0, -1]]
      .map(([a, b]) =>
             ({mean: inside(mean + a * size, LIMITS.mean), width: inside(width + b * size, LIMITS.width)}))
      .map(to => ({...to, gain: now - lost(to.mean, to.width)}))
      .sort((a, b) => b.gain - a.gain);
  return first.gain > 1e-9 ? {mean: first.mean, width: first.width} : null;
}

// The hill with the least divergence: the best of a grid, then downhill.
export function best(p, measure) {
  let at = null, least = Infinity;
  for (let mean = 0; mean <= 9; mean += 0.5) {
    for (const width of [0.4, 0.6, 0.8, 1.2, 2, 3, 4, 5]) {
      const lost = MEASURES[measure](p, hill(mean, width));
      if (lost < least) [at, least] = [{mean, width}, lost];
    }
  }
  for (const size of [0.1, 0.02])
    for (let to = step(p, at, measure, size); to; to = step(p, at, measure, size)) at = to;
  return at;
}

export default function student(kit, data) {
  const {t, h, digits, chart, rect, text} = kit;
  let own = {mean: kit.one('mean', [2, 3, 4, 5, 6, 7], 5), width: 1}, box = 'white',
      teacher = kit.one('teacher', data.teachers), walking = 0;
  const chances = () => box === 'white' ? teacher.chances : teacher.written.map(n => n / data.facts.written);
  const both = () => {
    const p = chances(), q = hill(own.mean, own.width);
    return [kl(p, q), kl(q, p)];
  };

  const mean = kit.slider({
    label: t('mean'),
    lo: 0,
    hi: 9,
    step: 0.1,
    value: own.mean,
    format: v => digits(v, 2),
    oninput: v => {
      stop();
      own = {...own, mean: v};
    }
  });
  const width = kit.slider({
    label: t('width'),
    lo: 0.4,
    hi: 5,
    step: 0.1,
    value: own.width,
    format: v => digits(v, 2),
    oninput: v => {
      stop();
      own = {...own, width: v};
    }
  });
  const put = to => {
    own = to;
    mean.set(to.mean);
    width.set(to.width);
    kit.redraw();
  };
  function stop() { cancelAnimationFrame(walking); }
  function walk(measure) {
    stop();
    const from = own, to = best(chances(), measure);
    if (kit.calm) {
      put(to);
      return;
    }
    let i = 0;
    const on = () => {
      const part = ++i / FRAMES, between = name => from[name] + part * (to[name] - from[name]);
      put(i < FRAMES ? {mean: between('mean'), width: between('width')} : to);
      if (i < FRAMES) walking = requestAnimationFrame(on);
    };
    on();
  }
  const forward = kit.button(t('walk.forward'), () => walk('forward'));
  const reverse = kit.button(t('walk.reverse'), () => walk('reverse'));
  const seen = h('p', {className: 'figure-words'});
  return {
    controls: [
      kit.choice({
        label: t('teacher'),
        value: teacher.name,
        options: data.teachers.map(({name, beginning}) => [name, `“${beginning}_”`]),
        onchange: v => {
          stop();
          teacher = data.teachers.find(one => one.name === v);
        }
      }),
      mean,
      width,
      h('div', {className: 'acts'}, forward, reverse),
      kit.choice({
        label: t('box'),
        value: box,
        onchange: v => {
          stop();
          box = v;
          reverse.disabled = v === 'black';
        },
        options: [['white', t('box.white')], ['black', t('box.black')]]
      }),
    ],
    about() {
      const [f, r] = both();
      return t('about', {
        mean: digits(own.mean, 2),
        width: digits(own.width, 2),
        forward: digits(f, 2),
        reverse: digits(r, 2)
      });
    },
    draw(wide) {
      const p = chances(), q = hill(own.mean, own.width), n = p.length;
      const c = chart({
        width: wide,
        height: 172,
        bottom: 24,
        x: {lo: -0.5, hi: n - 0.5, ticks: p.map((_, k) => [k, String(k)])},
        y: {lo: 0, hi: TALL, label: t('y')}
      });
      const unit = (c.x(1) - c.x(0)) * 0.66;
      p.forEach((v, k) => c.add(rect(c.x(k) - unit / 2, c.y(Math.min(v, TALL)), unit,
                  c.box.bottom - c.y(Math.min(v, TALL)), {class: 'bar original', rx: 2})));
      c.add(kit.line(q.map((v, k) => [c.x(k), c.y(Math.min(v, TALL))]), {class: 'line distillation'}),
        q.map(
          (v, k) => kit.s('circle', {class: 'distillation', cx: c.x(k), cy: c.y(Math.min(v, TALL)), r: 4})),
        rect(c.box.right - 150, 2, 11, 11, {class: 'bar original', rx: 2}),
        text(c.box.right - 134, 12, t('name.teacher')),
        kit.s('circle', {class: 'distillation', cx: c.box.right - 64, cy: 8, r: 4}),
        text(c.box.right - 54, 12, t('name.student')));
      const [f, r] = both();
      const rows = [['forward', f], ['reverse', r]].map(([name, value]) => ({
        name: t(`name.${name}`),
        value: Math.min(value, MOST),
        words: t('nats', {n: digits(value, 2)}),
        className: 'distillation'
      }));
      seen.textContent = box === 'black' ? t('seen.black') : '';
      return h('div', {}, c.svg, kit.bars(wide, rows, {most: MOST, room: Math.min(240, wide * 0.42)}), seen);
    },
    close: stop,
  };
}
