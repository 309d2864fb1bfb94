// Where the parts of a scene (evaluation/page/plots.py) stand at the size of a window. Without a page.
const STRIP = 58;  // Depth of a band of broken models, under the axes or beside them; it has no scale.
const REACH = 22;  // Pixels around a point in which it is meant.

// The frame in pixels; `measure` gives a text's width. Scales end at `right` and `bottom`, bands at `wall`
// and `floor`.
function frameOf({marks, y}, width, height, measure) {
  const floor = height - 46, wall = width - 14;
  const under = marks.some(m => m.y === null), beside = marks.some(m => m.x === null);
  return {
    width,
    height,
    left: 12 + Math.max(18, ...y.ticks.map(([, text]) => measure(text))),
    right: beside ? wall - STRIP - 6 : wall,
    top: 32,
    bottom: under ? floor - STRIP - 6 : floor,
    floor,
    wall,
    under,
    beside,
  };
}
const across = (f, x) => x === null ? f.wall - STRIP + 16 : f.left + x * (f.right - f.left);
const down = (f, y) => y === null ? f.floor - 16 : f.bottom - y * (f.bottom - f.top);

// The bands of broken models: box, and where their words begin. Those beside the axes are read upwards, on
// the right of the points: names stand on the left.
function bandsOf({left, top, bottom, floor, wall, under, beside}) {
  return [
    under && {box: [left, floor - STRIP, wall, floor], x: left + 6, y: floor - STRIP + 14},
    beside && {box: [wall - STRIP, top, wall, bottom], x: wall - 6, y: bottom - 6, upwards: true},
  ].filter(Boolean);
}

// The box that a band's words cover, `wide` pixels long.
const covered = ({box: [left, top, right, bottom], upwards}, wide) =>
  upwards ? [right - 18, bottom - 6 - wide, right, bottom] : [left, top, left + 6 + wide, top + 17];

// Where a value of a linear axis stands, null beyond its ends or where the axis is logarithmic.
function along({range}, value) {
  if (!range || value === null) return null;
  const part = (value - range[0]) / (range[1] - range[0]);
  return part < 0 || part > 1 ? null : part;
}

// Where a name may stand about its point: right, left, above, below, and between them.
const ABOUT = [
  [11, 4, 'start'],
  [-11, 4, 'end'],
  [0, -12, 'middle'],
  [0, 21, 'middle'],
  [8, -9, 'start'],
  [-8, -9, 'end'],
  [8, 17, 'start'],
  [-8, 17, 'end'],
  [15, 4, 'start'],
  [-15, 4, 'end'],
  [0, -19, 'middle'],
  [0, 29, 'middle'],
  [13, -17, 'start'],
  [-13, -17, 'end'],
  [13, 25, 'start'],
  [-13, 25, 'end'],
];
const meet = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

// Small boxes along a line, which names keep off.
function onLine(points) {
  const boxes = [];
  points.slice(1).forEach(([x, y], i) => {
    const [a, b] = points[i], steps = Math.ceil(Math.hypot(x - a, y - b) / 8);
    for (let k = 0; k <= steps; k++) {
      const [p, q] = [a + (x - a) * k / steps, b + (y - b) * k / steps];
      boxes.push([p - 2, q - 2, p + 2, q + 2]);
    }
  });
  return boxes;
}

// A place for each name (x, y, text), where it covers no point (x, y, r: its reach) and nothing in `taken`;
// null where there is none.
function placed(names, points, taken, f, measure) {
  const full = [...taken, ...points.map(({x, y, r}) => [x - r, y - r, x + r, y + r])];
  return names.map(({x, y, text}) => {
    const wide = measure(text);
    for (const [dx, dy, anchor] of ABOUT) {
      const left = x + dx - {start: 0, middle: wide / 2, end: wide}[anchor];
      const box = [left - 2, y + dy - 12, left + wide + 2, y + dy + 4];
      const inside = box[0] >= f.left && box[2] <= f.width && box[1] >= 16 && box[3] <= f.floor;
      if (!inside || full.some(other => meet(box, other))) continue;
      full.push(box);
      return {x: x + dx, y: y + dy, anchor, text};
    }
    return null;
  });
}

// The ids that are named: what is looked at, a family that is lit, then as the server wants.
function wanted({marks, names}, {run, family}, narrow) {
  const lit = family ? marks.filter(m => m.family === family).map(m => m.id) : [];
  const may = m => !family || m.family === family || m.family === 'original' || m.id === run;
  const own = new Set(marks.filter(may).map(m => m.id));
  return [...new Set([run, ...names, ...lit])].filter(id => own.has(id)).slice(0, narrow ? 6 : 22);
}

// The point that a key leads to from point i: left and right in the order of x, up and down in that of
// height.
function keyTo(spots, i, key) {
  const horizontal = {ArrowRight: 1, ArrowLeft: -1}[key], vertical = {ArrowUp: -1, ArrowDown: 1}[key];
  if (!['Home', 'End'].includes(key) && !horizontal && !vertical) return null;
  const [one, two] = vertical ? ['y', 'x'] : ['x', 'y'];
  const order = spots.map((_, k) => k);
  order.sort((a, b) => spots[a][one] - spots[b][one] || spots[a][two] - spots[b][two]);
  if (key === 'Home' || key === 'End') return order.at(key === 'Home' ? 0 : -1);
  const at = order.indexOf(i) + (horizontal ?? vertical);
  return order[Math.min(Math.max(at, 0), order.length - 1)];
}

// The point that is nearest to a place, null where none is near.
function nearest(spots, x, y) {
  let best = null, least = REACH;
  spots.forEach((spot, i) => {
    const far = Math.hypot(spot.x - x, spot.y - y);
    if (far < least) [best, least] = [i, far];
  });
  return best;
}
