// The card of the chosen run, and what the buttons of all cards do.
// `wanted` is the run that is asked for, `shown` the one that is here.
let wanted = '', shown = '', spec = null, control = null;
const card = newest(id => ce.ask(server.ask_card, {id}));

async function show(id) {
  wanted = id;
  const got = await card(id);
  if (!got || wanted !== id) return;
  const open = root.querySelector('details.all')?.open ?? false;
  shown = id;
  ({spec, control} = got);
  root.innerHTML = got.error || got.html;
  root.dataset.run = id;
  const all = root.querySelector('details.all');
  if (all) all.open = open;
  ce.say('card', {id, ...got});
  if (got.soon) {
    setTimeout(() => {
      if (wanted === id && !root.contains(document.activeElement)) show(id);
    }, 3000);
  }
}

const empty = () => root.replaceChildren(h('p', {className: 'quiet'}, t('card.none')));
// No run is chosen any more; a card that is still on its way comes too late.
function none() {
  wanted = shown = '';
  empty();
}

// What the link named wrongly.
function problems() {
  const dismiss = () => {
    ce.problems = [];
    empty();
    ce.say('results');
  };
  root.replaceChildren(...ce.problems.map(
    ([code, facts]) =>
      h('div', {className: 'error calm', role: 'alert'}, h('h3', {}, t(`error.${code}.what`, facts)),
        h('p', {}, t(`error.${code}.means`, facts)), h('p', {}, t(`error.${code}.do`, facts)),
        h('button', {className: 'plain', onclick: dismiss}, t('act.dismiss')))));
}

const specOf = async id => id === shown ? spec : id ? (await ce.ask(server.ask_card, {id}))?.spec : null;

async function take(id) {
  const known = await specOf(id), {model} = ce.state;
  if (!known) return;
  ce.use(known);
  if (model !== ce.state.model) ce.say('model');
}

async function run(button, id, options) {
  await take(id);
  leave(button);
  ce.say('run', options);
}

const leave = button => button.closest('.error')?.remove();

// A button says for a while what it did.
function said(button, text) {
  const was = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = was; }, 1600);
}

const ACTS = {
  dismiss(button) {
    leave(button);
    if (!root.childElementCount) empty();
  },
  offline(button) {
    ce.state.model = ce.data.offline;
    ce.write();
    ce.say('choices');
    ce.say('model');
    leave(button);
  },
  builtin(button) {
    Object.assign(ce.state.settings, {text: 'builtin', calibration: 'builtin', protocol: 'raw'});
    ce.write();
    ce.say('choices');
    leave(button);
  },
  chat(button, id) {
    ce.state.run = id;
    ce.setTab('chat');
  },
  retry: (button, id) => run(button, id, {again: false, chat: false}),
  again: (button, id) => run(button, id, {again: true, chat: false}),
  make: (button, id) => run(button, id, {again: true, chat: true}),
  async use(button, id) {
    await take(id);
    document.querySelector('#controls')?.scrollIntoView({block: 'nearest'});
  },
  control(button, id) {
    if (id !== shown || !control) return;
    ce.use(control);
    ce.say('run', {});
  },
  async link(button, id) {
    const u = new URL(location);
    u.searchParams.set('run', id);
    try {
      await navigator.clipboard.writeText(u.href);
    } catch { prompt(t('card.link'), u.href); }
    said(button, t('card.copied'));
  },
  async record(button, id) {
    const got = await ce.ask(server.ask_record, {id});
    if (got?.error) root.insertAdjacentHTML('beforeend', got.error);
    if (!got?.text) return;
    const href = URL.createObjectURL(new Blob([got.text], {type: 'application/json'}));
    h('a', {href, download: got.name}).click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  },
  // A title and a note of one's own.
  name(button, id) {
    const person = root.querySelector('.person'), old = root.querySelector('form.naming');
    if (old) return old.remove();
    const title = h('input', {type: 'text', maxLength: 60, value: person.dataset.title});
    const note = h('textarea', {rows: 2, maxLength: 500, value: person.textContent});
    const save = async e => {
      e.preventDefault();
      const got =
        await ce.ask(server.ask_name, {id, visitor: ce.visitor, title: title.value, note: note.value});
      if (got?.error) return root.insertAdjacentHTML('beforeend', got.error);
      if (!got) return;
      await show(id);
      ce.say('results');
    };
    button.closest('.buttons')
      .after(h('form', {className: 'naming', onsubmit: save}, h('label', {}, t('card.name.title'), title),
        h('label', {}, t('card.name.note'), note),
        h('button', {className: 'plain', type: 'submit'}, t('card.name.save'))));
    title.focus();
  },
  // The first click asks, the second deletes.
  async delete (button, id) {
    if (!button.classList.contains('sure')) {
      button.classList.add('sure');
      button.textContent = t('card.delete.sure');
      return;
    }
    const got = await ce.ask(server.ask_delete, {id, visitor: ce.visitor});
    if (got?.error) return root.insertAdjacentHTML('beforeend', got.error);
    if (!got) return;
    if (wanted === id) none();
    if (ce.state.run === id) ce.state.run = '';
    ce.write();
    ce.say('results');
  },
  async download(button, id) {
    said(button, t('card.preparing'));
    const got = await ce.ask(server.ask_pack, {id, form: button.dataset.form ?? ''});
    if (got?.file) h('a', {href: `gradio_api/file=${got.file}`, download: got.name}).click();
    else if (got?.error) root.insertAdjacentHTML('beforeend', got.error);
  },
};

document.addEventListener('click', e => {
  const button = e.target.closest?.('button[data-act]');
  if (button) ACTS[button.dataset.act]?.(button, button.dataset.id);
});
ce.ready.then(() => {
  ce.on('select', ({id, from}) => {
    show(id);
    if (from === 'table' && innerWidth < 700) root.scrollIntoView({behavior: 'smooth'});
  });
  // The card of a run on its way says what its progress says.
  ce.on('progress', ({id, words}) => {
    const waiting = id === shown ? root.querySelector('[data-waiting]') : null;
    if (waiting) waiting.textContent = words;
  });
  ce.on('preselect', ({id}) => {
    if (!ce.state.run) show(id);
  });
  ce.on('lang', () => {
    if (wanted) show(wanted);
    else if (ce.problems.length) problems();
    else empty();
  });
  ce.on('model', () => {
    if (!ce.state.run) none();
  });
  if (ce.problems.length) problems();
  else if (ce.state.run) show(ce.state.run);
  else empty();
});
