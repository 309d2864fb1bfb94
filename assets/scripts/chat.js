// Both models answer the same question. One event streams both columns.
let heads = null, state = null, busy = false, question = '', turn = 0, temperature = 0, length = 96;
const status = h('p', {className: 'chat-status', role: 'status'});
const box = h('textarea', {id: 'prompt', rows: 2, maxLength: 4000, onkeydown: onKey});
const send = h('button', {className: 'primary', type: 'submit'});
const stop = h('button', {className: 'plain', type: 'button', hidden: true, onclick: end});
const suggest = h('div', {className: 'suggest'}), options = h('div', {className: 'chat-options'});
const choice = h('div', {className: 'choice'}), asked = h('p', {className: 'asked'});
const trouble = h('div', {className: 'trouble'});
const form = h('form', {className: 'ask', onsubmit: e => { e.preventDefault(); submit(); }},
  box, h('div', {className: 'row'}, send, stop));
const none = h('div', {className: 'none', hidden: true});
const talk = h('div', {className: 'talk', hidden: true},
  asked, sideBySide, status, trouble, suggest, form, options);
const sides = newest(() => ce.ask(server.ask_sides, {id: ce.state.run}));

async function load() {
  const got = await sides();
  if (!got) return;
  if (got.error) { none.hidden = false; none.innerHTML = got.error; return; }
  const [first] = got.options;
  if (!got.right && first && !got.options.some(([id]) => id === ce.state.run)) {
    [ce.state.run] = first;
    ce.write();
    return load();
  }
  heads = got;
  draw();
}

function draw() {
  const ready = Boolean(heads?.right);
  if (!heads) return;
  none.hidden = ready;
  talk.hidden = !ready;
  none.replaceChildren(h('p', {}, t('chat.none')),
    h('button', {className: 'primary', onclick: () => ce.setTab('explore')}, t('chat.none_button')));
  drawChoice();
  if (!ready) return;
  columns.original.title.replaceChildren(heads.left.title, heads.rounded ? h('small', {}, heads.rounded) : '');
  columns.compressed.title.textContent = heads.right.title;
  box.placeholder = t('chat.placeholder');
  box.setAttribute('aria-label', t('chat.prompt'));
  send.textContent = t('chat.send');
  stop.textContent = t('chat.stop');
  drawSuggestions();
  drawOptions();
  show();
}

function drawChoice() {
  const onchange = e => { state = null; question = ''; ce.select(e.target.value, 'chat'); };
  const pick = heads.options.length
    ? h('label', {}, t('chat.choose'), h('select', {id: 'side', onchange}, optionList(heads.options, ce.state.run)))
    : '';
  choice.replaceChildren(h('h2', {}, t('chat.title')), pick);
}

function drawSuggestions() {
  const chip = words =>
    h('button', {className: 'chip', type: 'button', disabled: busy, onclick: () => start(words)}, words);
  suggest.replaceChildren(h('span', {className: 'quiet'}, t('chat.suggest')),
    ...[1, 2, 3, 4, 5].map(i => chip(t(`chat.try.${i}`))));
}

// A number between limits, `usual` where nothing was written.
const within = (text, low, high, usual) => Math.min(high, Math.max(low, Number(text) || usual));

function drawOptions() {
  const number = (label, min, max, step, value, put) =>
    h('label', {}, label, h('input', {type: 'number', min, max, step, value, onchange: e => put(e.target.value)}));
  const quiet = (wanted, key) => wanted ? h('span', {className: 'quiet'}, t(key)) : '';
  options.replaceChildren(
    number(t('chat.tokens'), 8, 512, 8, length, text => { length = within(text, 8, 512, 96); }),
    number(tip(t('chat.temperature'), t('chat.temperature.help')), 0, 2, 0.1, temperature,
      text => { temperature = within(text, 0, 2, 0); }),
    quiet(!heads.chats, 'chat.continues'), quiet(heads.busy, 'chat.busy'));
}

function show() {
  asked.textContent = question;
  asked.hidden = !question;
  drawColumns(heads, state, busy);
  send.disabled = busy;
  stop.hidden = !busy;
  status.textContent = state?.status ?? '';
  trouble.innerHTML = state?.error ?? '';
}

function onKey(e) {
  if (e.key !== 'Enter' || e.shiftKey || e.isComposing) return;
  e.preventDefault();
  submit();
}
const submit = () => start(box.value.trim());

function start(words) {
  if (!words || busy || !heads?.right) return;
  question = words;
  box.value = '';
  busy = true;
  turn += 1;
  state = null;
  draw();
  status.textContent = t('chat.waiting');
  trigger('ask', {
    lang: ce.lang, visitor: ce.visitor, id: ce.state.run, turn, messages: [{role: 'user', content: words}],
    max_tokens: length, temperature, seed: 0,
  });
}

async function end() {
  stop.disabled = true;
  await ce.ask(server.ask_stop_chat, {visitor: ce.visitor});
  stop.disabled = false;
}

watch('value', () => {
  if (!props.value?.sides || props.value.turn !== turn) return;
  state = props.value;
  if (!state.done) return show();
  busy = false;
  keep('ce-chat', {state, question});
  draw();
});
document.addEventListener('keydown', e => { if (e.key === 'Escape' && busy && ce.tab === 'chat') end(); });
ce.ready.then(() => {
  ({state, question} = kept('ce-chat') ?? {state, question});  // The last exchange outlives a reload.
  root.replaceChildren(choice, none, talk);
  ce.on('lang', load);
  ce.on('tab', tab => { if (tab === 'chat') load(); });
  ce.on('select', () => { if (ce.tab === 'chat') load(); });
  if (ce.tab === 'chat') load();
});
