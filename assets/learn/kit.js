// What a lesson is made of: drawings with axes, and controls. One look for all lessons; colours are the
// page's. A lesson's script gives, by default, a function (kit, data) -> {draw(width) -> svg, controls,
// about(), guess()}; where the figure is the answer also hold(), what was answered as JSON, and take(held),
// which shows it again.

const NICE = [1, 2, 2.5, 5, 10];

// Round values between two ends, about as many as asked; decades and their halves on a logarithmic axis.
export function ticks(lo, hi, count = 5, log = false) {
  if (log) {
    const out = [];
    for (let e = Math.floor(Math.log10(lo)); e <= Math.log10(hi); e++) {
      for (const m of Math.log10(hi / lo) > 2.2 ? [1] : Math.log10(hi / lo) > 1 ? [1, 3] : [1, 2, 3, 5]) {
        const v = m * 10 ** e;
        if (v >= lo * 0.999 && v <= hi * 1.001) out.push(v);
      }
    }
    return out;
  }
  const rough = (hi - lo) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * NICE.find(n => n * power >= rough * 0.999), out = [];
  for (let v = Math.ceil(lo / step - 1e-9) * step; v <= hi + step * 1e-6; v += step)
    out.push(Math.abs(v) < 1e-12 ? 0 : v);
  return out;
}

// From values to pixels and back.
export function scale(lo, hi, from, to, log = false) {
  const f = log ? Math.log : v => v, back = log ? Math.exp : v => v, a = f(lo), b = f(hi);
  const at = v => from + (f(v) - a) / (b - a) * (to - from);
  at.value = p => back(a + (p - from) / (to - from) * (b - a));
  return at;
}

// One for each number of places: making one takes far longer than writing a number with it.
const formats = Array.from(
  {length: 21}, (_, maximumFractionDigits) => new Intl.NumberFormat('en', {maximumFractionDigits}));

// A number with so many significant digits, thousands set apart.
export function digits(value, n = 3) {
  if (!Number.isFinite(value)) return '∞';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e15)) return value.toExponential(n - 1);
  const places = size === 0 ? 0 : Math.max(0, n - 1 - Math.floor(Math.log10(size)));
  return formats[Math.min(places, 20)].format(value);
}

export function kitOf(frame, t, figure, redraw) {
  const {h, s} = frame;
  let ids = 0;
  // The figure's knobs in the order in which the lesson makes them; a teacher's link sets them.
  const asked = (frame.place().knobs ?? '').split(',').filter(Boolean), set = [];
  function knob(value, allowed, take) {
    const at = set.length, wanted = asked[at];
    const first = wanted === undefined ? value : allowed(wanted) ?? value;
    set.push(first);
    if (first !== value) take(first);
    return {first, keep: now => { set[at] = now; }};
  }

  // A drawing with axes. x and y: {lo, hi, log, label, ticks: false | [[value, text]]}. Returns {svg, x, y,
  // add}.
  function chart({width, height = 260, x, y, left = 46, right = 12, top = 24, bottom = 40}) {
    const svg = s(
      'svg', {class: 'lesson-svg', width, height, viewBox: `0 0 ${width} ${height}`, 'aria-hidden': 'true'});
    const box = {left, right: width - right, top, bottom: height - bottom};
    const at = {
      x: scale(x.lo, x.hi, box.left, box.right, x.log),
      y: scale(y.lo, y.hi, box.bottom, box.top, y.log),
    };
    const list = (axis, n) =>
      axis.ticks === false ? [] : axis.ticks ?? ticks(axis.lo, axis.hi, n, axis.log).map(v => [v, digits(v)]);
    const grid = v => s('path', {class: 'grid', d: `M${box.left} ${at.y(v)}H${box.right}`});
    const beside = (v, name) => s('text', {x: box.left - 6, y: at.y(v) + 4, 'text-anchor': 'end'}, name);
    const rung = ([v, name]) => s('g', {}, grid(v), beside(v, name));
    const foot = ([v, name]) => s('text', {x: at.x(v), y: box.bottom + 17, 'text-anchor': 'middle'}, name);
    svg.append(...list(y, 4).map(rung), ...list(x, Math.max(2, Math.floor(width / 110))).map(foot),
      s('path', {class: 'axis', d: `M${box.left} ${box.bottom}H${box.right}`}),
      x.label ? s('text', {x: box.right, y: height - 4, 'text-anchor': 'end'}, x.label) : '',
      y.label ? s('text', {x: 2, y: 11}, y.label) : '');
    return {
      svg,
      box,
      x: at.x,
      y: at.y,
      add: (...parts) => {
        svg.append(...parts.flat().filter(Boolean));
        return svg;
      }
    };
  }

  // A path through points [x, y] in pixels.
  const line = (points, more = {}) => s('path', {
    class: 'line',
    d: points.map(([x, y], i) => `${i ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`).join(''),
    ...more,
  });
  const text = (x, y, words, more = {}) => s('text', {x, y, ...more}, words);
  const rect = (x, y, width, height, more = {}) =>
    s('rect', {x, y, width: Math.max(width, 0), height: Math.max(height, 0), ...more});

  // Bars with their names: [{name, value, words, className}], the longest as wide as there is room.
  function bars(width, rows,
    {most = Math.max(...rows.map(r => r.value)), room = Math.min(190, width * 0.36), row = 30} = {}) {
    const svg = s('svg', {class: 'lesson-svg', width, height: rows.length * row + 6, 'aria-hidden': 'true'});
    const wide = width - room - 84;
    rows.forEach((r, i) => {
      const y = i * row + 4, long = Math.max(1.5, r.value / most * wide);
      svg.append(text(room - 8, y + 16, r.name, {'text-anchor': 'end', class: 'name'}),
        rect(room, y + 3, long, row - 12, {class: `bar ${r.className ?? ''}`, rx: 2}),
        text(room + long + 6, y + 16, r.words ?? digits(r.value)));
    });
    return svg;
  }

  // A labelled slider. format: value -> words. log: equal steps are equal ratios.
  function slider({
    label,
    lo,
    hi,
    step = 1,
    value: usual,
    format = v => digits(v),
    oninput,
    log = false,
    asked: free = false
  }) {
    const within = text => Number(text) >= lo && Number(text) <= hi ? Number(text) : undefined;
    const {first: value, keep} = free ? {first: usual, keep() {}} : knob(usual, within, oninput);
    const id = `lesson-slider-${++ids}`, out = h('output', {htmlFor: id}, format(value));
    const to = v => log ? Math.round(1000 * Math.log(v / lo) / Math.log(hi / lo)) : v;
    const from = v => log ? lo * (hi / lo) ** (v / 1000) : v;
    const input = h('input', {
      id,
      type: 'range',
      min: log ? 0 : lo,
      max: log ? 1000 : hi,
      step: log ? 1 : step,
      value: to(value),
      'aria-valuetext': format(value),
      oninput: e => {
        const now = from(Number(e.target.value));
        out.textContent = format(now);
        e.target.setAttribute('aria-valuetext', format(now));
        keep(Number(now.toPrecision(4)));
        oninput(now);
        redraw();
      },
    });
    const root = h('div', {className: 'lesson-slider'}, h('label', {htmlFor: id}, label), out, input);
    root.set = v => {
      input.value = to(v);
      out.textContent = format(v);
      input.setAttribute('aria-valuetext', format(v));
    };
    return root;
  }

  // One of a few: [[value, words]].
  function choice({label, options, value: usual, onchange}) {
    const listed = text => options.find(([v]) => String(v) === text)?.[0];
    const {first: value, keep} = knob(usual, listed, onchange);
    const name = `lesson-choice-${++ids}`;
    const pick = v => {
      keep(v);
      onchange(v);
      redraw();
    };
    const inputs =
      options.map(([v]) => h('input', {type: 'radio', name, checked: v === value, onchange: () => pick(v)}));
    const root = h('fieldset', {className: 'lesson-choice'}, h('legend', {}, label),
      options.map(([, words], i) => h('label', {}, inputs[i], h('span', {}, words))));
    root.set = v => {
      keep(v);
      options.forEach(([one], i) => { inputs[i].checked = one === v; });
    };
    return root;
  }
  const button = (textContent, act, className = 'plain') => {
    const onclick = e => {
      act(e);
      redraw();
    };
    return h('button', {type: 'button', className, textContent, onclick});
  };
  const check = ({label, value, onchange: take}) => {
    const onchange = e => {
      take(e.target.checked);
      redraw();
    };
    const box = h('input', {type: 'checkbox', checked: value, onchange});
    return h('label', {className: 'lesson-check'}, box, label);
  };

  return {
    h,
    s,
    t,
    digits,
    ticks,
    scale,
    chart,
    line,
    text,
    rect,
    bars,
    slider,
    choice,
    button,
    check,
    redraw,
    figure,
    size: frame.sizeWords,
    knobs: () => set.join(','),
    linked: asked.length > 0,
    calm: matchMedia('(prefers-reduced-motion: reduce)').matches,
  };
}
