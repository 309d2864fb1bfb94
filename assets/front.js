// The front: a still picture at once, Plotly over it as soon as its script is here.
(async () => {
  await ce.ready;
  let now = null, drawn = false, ghost = null, asked = 0;
  const plot = h('div', {className: 'plot', role: 'img'});
  const title = h('h2'), answer = h('div', {className: 'answer'}), remarks = h('p', {className: 'quiet'});
  const axes = h('details', {className: 'axes'}), empty = h('p', {className: 'empty'});
  const hint = h('p', {className: 'ghost-words', role: 'status'});
  root.replaceChildren(h('div', {className: 'front-head'}, title, hint), plot, empty, remarks, answer, axes);

  async function load() {
    const turn = ++asked, s = ce.state;
    if (!now) { empty.textContent = ce.t('front.loading'); empty.hidden = false; }
    const got = await ce.ask(server.ask_front, {model: s.model, x: s.x, y: s.y, protocol: s.protocol, settings: s.settings, budget: s.budget, selected: s.run});
    if (!got || turn !== asked) { if (!got) setTimeout(() => turn === asked && load(), 2000); return; }
    if (got.error) { remarks.hidden = false; remarks.innerHTML = got.error; return; }
    now = got;
    words();
    draw();
    if (!s.run && got.best && !ce.problems.length) { s.shown = got.best; ce.say('preselect', {id: got.best}); }
  }
  function words() {
    const {t, state: s} = ce;
    title.textContent = t('front.title');
    plot.setAttribute('aria-label', now.alt);
    ce.say('headline', now.headline);
    empty.textContent = t('front.empty');
    empty.hidden = !now.empty;
    plot.classList.toggle('bare', now.empty);
    remarks.textContent = now.remarks.join(' ');
    remarks.hidden = !now.remarks.length;
    answer.hidden = !now.answer;
    if (!answer.contains(document.activeElement) || document.activeElement.tagName !== 'INPUT') {
      answer.innerHTML = now.answer;
      answer.prepend(h('h3', {}, t('front.which')));
    }
    const choose = (label, help, value, options, f) => h('label', {}, ce.tip(label, help),
      h('select', {onchange: e => f(e.target.value)}, options.map(([v, name]) => h('option', {value: v, selected: v === value}, name))));
    const names = ce.data.axes.map(k => [k, t(`metric.${k}`)]);
    const was = axes.open;
    axes.replaceChildren(h('summary', {}, t('front.axes')), h('div', {className: 'grid'},
      choose(t('front.x'), t(`metric.${now.x}.help`), now.x, names, v => { s.x = v; ce.write(); load(); }),
      choose(t('front.y'), t(`metric.${now.y}.help`), now.y, names, v => { s.y = v; ce.write(); load(); }),
      now.protocols.length ? choose(t('front.protocol'), t('front.protocol.help'), now.protocol, now.protocols, v => { s.protocol = v; load(); }) : ''),
      h('p', {className: 'quiet'}, t('front.key')));
    axes.open = was;
  }
  answer.addEventListener('change', e => { ce.state.budget = Math.max(1, Number(e.target.value) || 1) * 1e6; load(); });
  answer.addEventListener('input', e => { clearTimeout(answer.timer); answer.timer = setTimeout(() => { ce.state.budget = Math.max(1, Number(e.target.value) || 1) * 1e6; refreshAnswer(); }, 250); });
  async function refreshAnswer() {
    const s = ce.state, got = await ce.ask(server.ask_front, {model: s.model, x: s.x, y: s.y, protocol: s.protocol, settings: s.settings, budget: s.budget, selected: s.run});
    if (!got || got.error) return;
    const box = answer.querySelector('input'), held = document.activeElement === box, text = box?.value;
    answer.innerHTML = got.answer;
    answer.prepend(h('h3', {}, ce.t('front.which')));
    const fresh = answer.querySelector('input');
    if (held && fresh) { fresh.value = text; fresh.focus(); }
  }
  // "var:name" -> the theme's colour
  function themed(x) {
    const style = getComputedStyle(root);
    const walk = v => typeof v === 'string' ? (v.startsWith('var:') ? style.getPropertyValue('--ce-' + v.slice(4)).trim() : v)
      : Array.isArray(v) ? v.map(walk) : v && typeof v === 'object' ? Object.fromEntries(Object.entries(v).map(([k, w]) => [k, walk(w)])) : v;
    return walk(x);
  }
  function still() {
    if (!drawn) plot.innerHTML = now.still;
  }
  function draw() {
    if (!now) return;
    if (!window.Plotly) { still(); return script(); }
    const figure = themed(structuredClone(now.figure)), narrow = plot.clientWidth < 520;
    const layout = figure.layout;
    layout.annotations = layout.annotations.filter(a => !narrow || !/^label[23]/.test(a.name ?? ''));
    if (narrow) {
      layout.height = 320;
      layout.margin = {...layout.margin, t: 50, l: 50, r: 12};
      layout.annotations.filter(a => a.name === 'axis' && a.y === 1).forEach(a => { a.yshift = 28; });
      thin(layout.xaxis);
    }
    const ring = figure.data.find(t => t.name === 'ring'), spot = where(ce.state.run || ce.state.shown);
    if (spot) { ring.x = [spot.x]; ring.y = [spot.y]; }
    if (ghost !== null && layout.xaxis.type !== 'log' && ce.state.x === 'file_bytes') layout.shapes.push(line(ghost));
    if (!drawn) plot.replaceChildren();
    Plotly.react(plot, figure.data, layout, {displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false}).then(() => {
      if (drawn) return;
      drawn = true;
      plot.on('plotly_click', e => { const id = e.points.find(p => p.customdata)?.customdata; if (id) ce.select(id, 'front'); });
      plot.on('plotly_hover', () => { plot.style.cursor = 'pointer'; });
      plot.dataset.drawn = 'yes';
    });
  }
  // every second tick on a phone
  function thin(axis) {
    if (axis.tickvals.length > 5) for (const k of ['tickvals', 'ticktext']) axis[k] = axis[k].filter((_, i) => i % 2 === 0);
  }
  const line = x => ({type: 'line', name: 'ghost', x0: x, x1: x, yref: 'paper', y0: 0, y1: 1, line: {color: themed('var:accent'), width: 1.5, dash: 'dash'}});
  function where(id) {
    for (const t of now?.figure.data ?? []) {
      const i = (t.customdata ?? []).indexOf(id);
      if (i >= 0) return {x: t.x[i], y: t.y[i]};
    }
    return null;
  }
  function script() {
    if (document.querySelector('script[data-ce-plotly]')) return;
    const s = h('script', {src: props.plotly, onload: () => draw(), onerror: () => { s.remove(); setTimeout(draw, 3000); }});
    s.setAttribute('data-ce-plotly', '');
    document.head.append(s);
  }
  function ring() {
    if (!drawn) return;
    const i = plot.data.findIndex(t => t.name === 'ring'), spot = where(ce.state.run || ce.state.shown);
    Plotly.restyle(plot, {x: [spot ? [spot.x] : []], y: [spot ? [spot.y] : []]}, [i]);
  }
  ce.on('ghost', g => {
    ghost = g ? g.bytes : null;
    hint.textContent = g && ce.state.x === 'file_bytes' ? g.words : '';
    plot.dataset.ghost = ghost ?? '';
    if (!drawn || plot.layout.xaxis.type === 'log' || ce.state.x !== 'file_bytes') return;
    const shapes = plot.layout.shapes.filter(s => s.name !== 'ghost');
    Plotly.relayout(plot, {shapes: ghost === null ? shapes : [...shapes, line(ghost)]});
  });
  ce.on('lang', load);
  ce.on('model', () => { ce.state.protocol = ''; ce.state.budget = 0; load(); });
  ce.on('results', load);
  ce.on('select', ({id}) => { if (now && now.ids.includes(id)) ring(); else load(); });
  ce.on('preselect', ring);
  ce.on('tab', tab => { if (tab === 'explore' && drawn) requestAnimationFrame(() => Plotly.Plots.resize(plot)); });
  new MutationObserver(() => requestAnimationFrame(draw)).observe(document.body, {attributes: true, attributeFilter: ['class']});
  let width = innerWidth;
  addEventListener('resize', () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  document.addEventListener('click', e => { const b = e.target.closest?.('button[data-run]'); if (b) ce.select(b.dataset.run, 'link'); });
  load();
})();
