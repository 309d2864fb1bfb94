// The figure as a file: a drawing or a picture, with the colours of the screen.
const DRAWN = [
  'fill', 'stroke', 'stroke-width', 'stroke-dasharray', 'opacity', 'font-size', 'font-family', 'font-weight',
  'paint-order'
];

// A drawing that needs no style sheet: every element has what the page's gives it.
function flat(svg, ground, title) {
  const copy = svg.cloneNode(true);
  const [from, to] = [svg, copy].map(top => [top, ...top.querySelectorAll('*')]);
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of DRAWN) to[i].style.setProperty(name, style.getPropertyValue(name));
    for (const name of ['role', 'tabindex', 'aria-pressed', 'aria-hidden']) to[i].removeAttribute(name);
  });
  copy.querySelectorAll('.focus, .rings, .ghost-place').forEach(element => element.remove());
  const box = {width: svg.getAttribute('width'), height: svg.getAttribute('height')};
  copy.setAttribute('xmlns', SVG);
  copy.setAttribute('viewBox', `0 0 ${box.width} ${box.height}`);
  copy.prepend(s('title', {}, title), s('rect', {...box, fill: ground}));
  return new XMLSerializer().serializeToString(copy);
}

function give(blob, name) {
  const href = URL.createObjectURL(blob);
  h('a', {href, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(href), 10000);
}

// Twice as large as on the screen, so that it is sharp on a slide.
function painted(drawing, width, height) {
  return new Promise((resolve, reject) => {
    const image = new Image(), canvas = h('canvas', {width: 2 * width, height: 2 * height});
    image.onload = () => {
      canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(resolve, 'image/png');
    };
    image.onerror = reject;
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(drawing)}`;
  });
}

const fileName = kind => `compression-${ce.state.model.replace(/\W+/g, '-')}.${kind}`;

async function save(kind) {
  const svg = plot.querySelector('svg');
  const ground = getComputedStyle(root).getPropertyValue('--ce-ground').trim();
  if (!svg) return;
  const drawing = flat(svg, ground, plot.getAttribute('aria-label'));
  const vector = () => new Blob([drawing], {type: 'image/svg+xml'});
  give(kind === 'png' ? await painted(drawing, frame.width, frame.height) : vector(), fileName(kind));
}

// A web page of its own, made by the server.
async function saveZoomed() {
  const got = await ce.ask(server.ask_zoomed, looked());
  if (got?.text) give(new Blob([got.text], {type: 'text/html'}), fileName('html'));
  else if (got?.error) {
    remarks.hidden = false;
    remarks.innerHTML = got.error;
  }
}
