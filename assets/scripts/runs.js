// All runs as a table: the front's twin. It sorts and filters the rows that the server wrote.
let column = -1, down = true, filter = '', table = null;
const trouble = h('div');
const fold = h('details', {className: 'runs-fold', open: false});
const runs = newest(() => ce.ask(server.ask_runs));

async function load() {
  const got = await runs();
  if (!got) return;
  if (got.error) fold.replaceChildren(h('summary', {}, t('runs.title')), h('div', {innerHTML: got.error}));
  else draw(got);
}

function draw({html, count, models, disk, own}) {
  const onchange = e => {
    filter = e.target.value;
    apply();
  };
  const pick = h('select', {'aria-label': t('runs.filter'), onchange},
    optionList([['', t('runs.all')], ...models.map(m => [m, m])], filter));
  const body = h('div', {className: 'scroll', innerHTML: html});
  table = body.querySelector('table.runs');
  fold.replaceChildren(
    h('summary', {}, h('span', {className: 'h2'}, t('runs.title')), h('span', {className: 'quiet'}, count)),
    h('div', {className: 'runs-head'}, h('label', {}, t('runs.filter'), pick),
      h('span', {className: 'quiet'}, t('runs.compared')), h('span', {className: 'quiet disk'}, disk),
      h('span', {className: 'files'},
        own ? h('button', {className: 'linklike', type: 'button', onclick: exportAll}, t('runs.export')) : '',
        ce.data.public ? '' : adding())),
    trouble, body);
  mark();
  apply();
}

// Results that were measured elsewhere, from the files that a card gives out.
function adding() {
  const file = h('input', {
    type: 'file',
    accept: '.json,.jsonl',
    multiple: true,
    className: 'sr',
    id: 'add-results',
    onchange: () => add(file),
  });
  return h('label', {className: 'add', htmlFor: 'add-results'}, file, t('runs.add'));
}

// The records in a file: it holds one, or one a line.
function recordsIn(text) {
  try {
    JSON.parse(text);
    return [text];
  } catch { return text.split('\n').filter(line => line.trim()); }
}

async function add(input) {
  let last = '';
  trouble.replaceChildren();
  for (const file of input.files) {
    for (const text of recordsIn(await file.text())) {
      const got = await ce.ask(server.ask_add, {text});
      if (got?.id) last = got.id;
      else trouble.insertAdjacentHTML('beforeend', got?.error ?? '');
    }
  }
  input.value = '';
  if (!last) return;
  ce.say('results');
  ce.select(last, 'table');
}

// All finished runs of this machine as one file.
async function exportAll() {
  const got = await ce.ask(server.ask_export_all);
  trouble.innerHTML = got?.error ?? '';
  if (got?.file) h('a', {href: `gradio_api/file=${got.file}`, download: got.name}).click();
}

// The order of two cells: numbers as numbers, words as words; what was not measured stands last.
function order(p, q, number, down) {
  if (p === '' || q === '') return (p === '') - (q === '');
  return (number ? p - q : p.localeCompare(q)) * (down ? -1 : 1);
}

function apply() {
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows];
  for (const row of rows) row.hidden = Boolean(filter) && row.dataset.model !== filter;
  table.querySelectorAll('th').forEach((th, i) => {
    if (i === column) th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    else th.removeAttribute('aria-sort');
  });
  if (column < 0) return;
  const value = row => row.cells[column].dataset.v;
  const number = rows.every(row => value(row) === '' || !Number.isNaN(Number(value(row))));
  body.append(...rows.sort((a, b) => order(value(a), value(b), number, down)));
}

// The chosen run, or the one that the front shows of itself.
function mark() {
  for (const row of table?.querySelectorAll('tr[data-run]') ?? []) {
    const chosen = row.dataset.run === (ce.state.run || ce.state.shown);
    row.classList.toggle('chosen', chosen);
    if (chosen) row.setAttribute('aria-current', 'true');
    else row.removeAttribute('aria-current');
  }
}

// The same head again turns the order; a new one begins with the largest, names with the first.
function sort(i) {
  down = i === column ? !down : i > 1;
  column = i;
  apply();
}

fold.addEventListener('click', e => {
  const head = e.target.closest('button[data-sort]'), row = e.target.closest('tr[data-run]');
  if (head) sort(Number(head.dataset.sort));
  else if (row && !e.target.closest('button')) ce.select(row.dataset.run, 'table');
});
ce.ready.then(() => {
  root.replaceChildren(fold);
  ce.on('lang', load);
  ce.on('results', load);
  ce.on('select', mark);
  ce.on('preselect', mark);
  load();
});
