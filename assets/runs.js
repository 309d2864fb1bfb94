// All runs as a table: the front's twin. Sorting and filtering happen here, on rows that the server wrote.
(async () => {
  await ce.ready;
  let column = -1, down = true, filter = '', got = null;
  const fold = h('details', {className: 'runs-fold'});
  fold.open = false;
  root.replaceChildren(fold);
  async function load() {
    const answer = await ce.ask(server.ask_runs);
    if (!answer) return setTimeout(load, 2000);
    if (answer.error) return fold.replaceChildren(h('summary', {}, ce.t('runs.title')), h('div', {innerHTML: answer.error}));
    got = answer;
    draw();
  }
  function draw() {
    const {t} = ce;
    if (!got) return;
    const pick = h('select', {'aria-label': t('runs.filter'), onchange: e => { filter = e.target.value; apply(); }},
      h('option', {value: ''}, t('runs.all')), got.models.map(m => h('option', {value: m, selected: m === filter}, m)));
    const body = h('div', {className: 'scroll'});
    body.innerHTML = got.html;
    fold.replaceChildren(h('summary', {}, h('span', {className: 'h2'}, t('runs.title')), h('span', {className: 'quiet'}, got.count)),
      h('div', {className: 'runs-head'}, h('label', {}, t('runs.filter'), pick), h('span', {className: 'quiet'}, t('runs.compared'))), body);
    mark();
    apply();
  }
  function apply() {
    const table = fold.querySelector('table.runs');
    if (!table) return;
    const rows = [...table.tBodies[0].rows];
    for (const r of rows) r.hidden = Boolean(filter) && r.dataset.model !== filter;
    table.querySelectorAll('th').forEach((th, i) => i === column ? th.setAttribute('aria-sort', down ? 'descending' : 'ascending') : th.removeAttribute('aria-sort'));
    if (column < 0) return;
    const value = r => r.cells[column].dataset.v;
    const number = rows.every(r => value(r) === '' || !Number.isNaN(Number(value(r))));
    rows.sort((a, b) => {
      const [p, q] = [value(a), value(b)];
      if (p === '' || q === '') return (p === '') - (q === '');  // what was not measured stands last
      return (number ? p - q : p.localeCompare(q)) * (down ? -1 : 1);
    });
    table.tBodies[0].append(...rows);
  }
  function mark() {
    for (const r of fold.querySelectorAll('tr[data-run]')) {
      const chosen = r.dataset.run === (ce.state.run || ce.state.shown);
      r.classList.toggle('chosen', chosen);
      chosen ? r.setAttribute('aria-current', 'true') : r.removeAttribute('aria-current');
    }
  }
  fold.addEventListener('click', e => {
    const sort = e.target.closest('button[data-sort]');
    if (sort) {
      const i = Number(sort.dataset.sort);
      down = i === column ? !down : i === 0 || i === 1 ? false : true;
      column = i;
      return apply();
    }
    const row = e.target.closest('tr[data-run]');
    if (row && !e.target.closest('button')) ce.select(row.dataset.run, 'table');
  });
  ce.on('lang', load);
  ce.on('results', load);
  ce.on('select', mark);
  ce.on('preselect', mark);
  load();
})();
