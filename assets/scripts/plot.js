// The front's picture: the server's scene (evaluation/page/plots.py, scene) laid out at the size of the
// window.
const plot = h('div', {className: 'plot', role: 'group'});
const bubble = h('div', {className: 'hover', hidden: true, 'aria-hidden': 'true'});
// What is drawn, how large, where each point stands, and the size in bytes that the knobs would give.
let scene = null, frame = null, spots = [], ghost = null;

const pen = document.createElement('canvas').getContext('2d');
function measuring() {
  const {fontFamily, fontSize} = getComputedStyle(plot);
  pen.font = `${fontSize} ${fontFamily}`;
  return text => pen.measureText(text).width;
}

function drawPlot() {
  if (!scene || !plot.clientWidth) return;
  const measure = measuring(), held = plot.querySelector('.mark:focus')?.dataset.id,
        {run, shown, family} = ce.state;
  frame = frameOf(scene, plot.clientWidth, plot.clientHeight, measure);
  const chosen = run || shown, reach = m => m.best || m.id === chosen ? 13 : 7;
  spots = scene.marks.map(m => ({id: m.id, x: across(frame, m.x), y: down(frame, m.y), r: reach(m)}));
  const by = Object.fromEntries(spots.map(spot => [spot.id, spot]));
  const svg =
    s('svg', {class: family ? 'front-svg lit' : 'front-svg', width: frame.width, height: frame.height},
      axesOf(measure), lineage(by), s('polyline', {class: 'front-line', points: pointsOf(scene.line)}),
      scene.marks.map(m => bars(m)), s('g', {class: 'ghost-place'}), rings(by, chosen), marksOf(chosen),
      namesOf(by, chosen, measure));
  plot.replaceChildren(svg, bubble);
  bubble.hidden = true;
  plot.dataset.drawn = 'yes';
  drawGhost();
  if (held) plot.querySelector(`.mark[data-id="${CSS.escape(held)}"]`)?.focus();
}

const pointsOf = line => line.map(([x, y]) => `${across(frame, x)},${down(frame, y)}`).join(' ');
const words = (x, y, text, more = {}) => s('text', {x, y, ...more}, text);

function axesOf(measure) {
  const {left, right, top, bottom, floor} = frame, {x, y, band, said} = scene;
  const few = x.ticks.filter((_, i) => frame.width > 520 || i % 2 === 0);
  const parts = [];
  if (band) {
    const [high, low] = band.map(at => down(frame, at)).sort((a, b) => a - b);
    parts.push(
      s('rect', {class: 'band', x: left, y: high, width: right - left, height: Math.max(low - high, 2)}));
  }
  for (const {box: [a, b, c, d], x: at, y: low, upwards} of bandsOf(frame)) {
    parts.push(s('rect', {class: 'band', x: a, y: b, width: c - a, height: d - b}),
      words(at, low, said.broken, {class: 'small', transform: upwards && `rotate(-90 ${at} ${low})`}));
  }
  for (const [at, text] of few) {
    parts.push(s('path', {class: 'grid', d: `M${across(frame, at)} ${top}V${bottom}`}),
      words(across(frame, at), floor + 17, text, {'text-anchor': 'middle'}));
  }
  for (const [at, text] of y.ticks) {
    parts.push(s('path', {class: 'grid', d: `M${left} ${down(frame, at)}H${right}`}),
      words(left - 6, down(frame, at) + 4, text, {'text-anchor': 'end'}));
  }
  parts.push(words(left, frame.height - 8, x.words), words(left > 60 ? 8 : left - 30, 16, y.words));
  return s('g', {class: 'axes', 'aria-hidden': 'true'}, parts);
}

// A family's colour, and whether that family stands out.
const tinted = ({family}) => family === ce.state.family ? `${family} on` : family;

// A chain goes on from a run that is drawn: a line from there.
const lineage = by => s('g', {class: 'lineage'}, scene.marks.filter(m => by[m.parent]).map(m => {
  const from = by[m.parent], to = by[m.id];
  return s('path', {class: tinted(m), d: `M${from.x} ${from.y}L${to.x} ${to.y}`});
}));

function bars(m) {
  if (!m.spread) return null;
  const x = across(frame, m.x), [low, high] = m.spread.map(at => down(frame, at));
  return low - high > 8 && s('path', {class: `spread ${tinted(m)}`, d: `M${x} ${low}V${high}`});
}

const rings = (by, chosen) => s('g', {class: 'rings'},
  scene.marks.filter(m => m.best)
    .map(m => s('circle', {class: 'best', cx: by[m.id].x, cy: by[m.id].y, r: 10})),
  by[chosen] && s('circle', {class: 'ring', cx: by[chosen].x, cy: by[chosen].y, r: 13}));

// One point can be reached by Tab, the others from there by the arrows.
function marksOf(chosen) {
  const first = Math.max(0, scene.marks.findIndex(m => m.id === chosen));
  const beaten = m => !m.leading && m.family !== 'original';
  const about = (m, i) => ({
    class: ['mark', tinted(m), beaten(m) ? 'beaten' : '', m.noted ? 'noted' : ''].join(' '),
    'data-id': m.id,
    role: 'button',
    tabindex: i === first ? 0 : -1,
    'aria-pressed': m.id === chosen,
    'aria-label': [m.label, ...m.lines.slice(1)].join('. '),
    transform: `translate(${spots[i].x} ${spots[i].y})`,
  });
  return scene.marks.map(
    (m, i) => s('g', about(m, i), s('circle', {class: 'focus', r: 12}), s('path', {d: m.path})));
}

function namesOf(by, chosen, measure) {
  const {run, family} = ce.state, marks = Object.fromEntries(scene.marks.map(m => [m.id, m]));
  const ids = wanted(scene, {run: run || chosen, family}, frame.width < 520);
  const names = ids.map(id => ({...by[id], text: marks[id].label}));
  const {left} = frame, {band, said, line} = scene;
  const taken = bandsOf(frame).map(place => covered(place, measure(said.broken)));
  taken.push(...onLine(line.map(([x, y]) => [across(frame, x), down(frame, y)])));
  const over = at => Math.min(...at.map(y => down(frame, y))) - 4;
  if (band) names.push({x: left - 5, y: over(band), text: said.band, low: true});
  const found = placed(names, spots, taken, frame, text => 1.04 * measure(text));
  const named = i => marks[ids[i]].best ? 'name strong' : 'name';
  const drawn = (name, i) => name &&
    words(name.x, name.y, name.text, {'text-anchor': name.anchor, class: names[i].low ? 'small' : named(i)});
  return s('g', {class: 'names', 'aria-hidden': 'true'}, found.map(drawn));
}

// The dashed line at the size that the knobs would give.
function drawGhost() {
  const place = plot.querySelector('.ghost-place');
  const at = ce.state.x === 'file_bytes' && scene ? along(scene.x, ghost) : null;
  plot.dataset.ghost = ghost ?? '';
  place?.replaceChildren(...at === null
      ? []
      : [s('path', {class: 'ghost', d: `M${across(frame, at)} ${frame.top}V${frame.floor}`})]);
}
function moveGhost(bytes) {
  ghost = bytes;
  drawGhost();
}

// What a point says, beside it and inside the picture.
function tellOf(i) {
  bubble.hidden = i === null;
  plot.style.cursor = i === null ? '' : 'pointer';
  if (i === null) return;
  const [name, ...lines] = scene.marks[i].lines, {x, y} = spots[i];
  bubble.replaceChildren(h('b', {}, name), ...lines.map(line => h('span', {}, line)));
  bubble.style.left =
    `${Math.min(Math.max(x - bubble.offsetWidth / 2, 0), frame.width - bubble.offsetWidth)}px`;
  const above = y - bubble.offsetHeight - 14;
  bubble.style.top = `${above < 0 ? y + 16 : above}px`;
}

function here(e) {
  const box = plot.getBoundingClientRect();
  return nearest(spots, e.clientX - box.x, e.clientY - box.y);
}
plot.addEventListener('pointermove', e => tellOf(here(e)));
plot.addEventListener('pointerleave', () => tellOf(null));
plot.addEventListener('click', e => {
  const i = here(e);
  if (i !== null) ce.select(spots[i].id, 'front');
});
plot.addEventListener('focusin', e => tellOf(indexOf(e.target)));
plot.addEventListener('focusout', () => tellOf(null));
const indexOf = target => {
  const i = spots.findIndex(spot => spot.id === target.closest?.('.mark')?.dataset.id);
  return i < 0 ? null : i;
};
plot.addEventListener('keydown', e => {
  const i = indexOf(e.target);
  if (i === null) return;
  const to = keyTo(spots, i, e.key), marks = plot.querySelectorAll('.mark');
  if (e.key === 'Enter' || e.key === ' ') ce.select(spots[i].id, 'front');
  else if (e.key === 'Escape') tellOf(null);
  else if (to === null) return;
  else {
    marks[i].setAttribute('tabindex', -1);
    marks[to].setAttribute('tabindex', 0);
    marks[to].focus();
  }
  e.preventDefault();
});
let drawnWidth = 0;
new ResizeObserver(() => {
  if (plot.clientWidth === drawnWidth) return;
  drawnWidth = plot.clientWidth;
  drawPlot();
}).observe(plot);
