// The front's picture: a still one at once, Plotly over it as soon as its script is here.
const plot = h('div', {className: 'plot', role: 'img'});
// What is drawn: the server's answer. `ghost` is the size, in bytes, that the knobs would give.
let picture = null, drawn = false, ghost = null;

// "var:name" becomes the theme's colour, wherever it stands in a figure.
function themed(value, colour) {
  if (typeof value === 'string') return value.startsWith('var:') ? colour(value.slice(4)) : value;
  if (Array.isArray(value)) return value.map(x => themed(x, colour));
  if (!value || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([name, x]) => [name, themed(x, colour)]));
}
const colour = name => getComputedStyle(root).getPropertyValue(`--ce-${name}`).trim();

// Where a run stands in a figure, null where it isn't drawn.
function spotOf(figure, id) {
  for (const trace of figure.data) {
    const i = (trace.customdata ?? []).indexOf(id);
    if (i >= 0) return {x: trace.x[i], y: trace.y[i]};
  }
  return null;
}
const chosenSpot = () => spotOf(picture.figure, ce.state.run || ce.state.shown);

// The ghost is a line at a size, so it stands only on a linear axis of sizes.
const ghostFits = layout => ghost !== null && layout.xaxis.type !== 'log' && ce.state.x === 'file_bytes';
const ghostLine = bytes => ({
  type: 'line', name: 'ghost', x0: bytes, x1: bytes, yref: 'paper', y0: 0, y1: 1,
  line: {color: colour('accent'), width: 1.5, dash: 'dash'},
});

// What a phone has no room for: the third and fourth name, every second tick.
function narrowed(layout) {
  const axis = {...layout.xaxis};
  if (axis.tickvals.length > 5) {
    for (const key of ['tickvals', 'ticktext']) axis[key] = axis[key].filter((_, i) => i % 2 === 0);
  }
  const annotations = layout.annotations
    .filter(a => !/^label[23]/.test(a.name ?? ''))
    .map(a => a.name === 'axis' && a.y === 1 ? {...a, yshift: 28} : a);
  return {...layout, xaxis: axis, annotations, height: 320, margin: {...layout.margin, t: 50, l: 50, r: 12}};
}

function drawPlot() {
  if (!picture) return;
  if (!window.Plotly) {
    if (!drawn) plot.innerHTML = picture.still;
    return loadPlotly();
  }
  const {data, layout: wide} = themed(picture.figure, colour), spot = chosenSpot();
  const layout = plot.clientWidth < 520 ? narrowed(wide) : wide;
  if (spot) Object.assign(data.find(trace => trace.name === 'ring'), {x: [spot.x], y: [spot.y]});
  if (ghostFits(layout)) layout.shapes.push(ghostLine(ghost));
  if (!drawn) plot.replaceChildren();
  const quiet = {displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false};
  Plotly.react(plot, data, layout, quiet).then(listen);
}

function listen() {
  if (drawn) return;
  drawn = true;
  plot.on('plotly_click', e => ce.select(e.points.find(p => p.customdata)?.customdata, 'front'));
  plot.on('plotly_hover', () => { plot.style.cursor = 'pointer'; });
  plot.dataset.drawn = 'yes';
}

function loadPlotly() {
  if (document.querySelector('script[data-ce-plotly]')) return;
  const onerror = () => { script.remove(); setTimeout(drawPlot, 3000); };
  const script = h('script', {src: props.plotly, 'data-ce-plotly': true, onload: drawPlot, onerror});
  document.head.append(script);
}

// The ring around the chosen point.
function ring() {
  if (!drawn) return;
  const i = plot.data.findIndex(trace => trace.name === 'ring'), spot = chosenSpot();
  Plotly.restyle(plot, {x: [spot ? [spot.x] : []], y: [spot ? [spot.y] : []]}, [i]);
}

// The dashed line at the estimated size; null takes it away.
function moveGhost(bytes) {
  ghost = bytes;
  plot.dataset.ghost = ghost ?? '';
  if (!drawn || plot.layout.xaxis.type === 'log' || ce.state.x !== 'file_bytes') return;
  const others = plot.layout.shapes.filter(shape => shape.name !== 'ghost');
  Plotly.relayout(plot, {shapes: ghost === null ? others : [...others, ghostLine(ghost)]});
}
