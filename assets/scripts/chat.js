// Both models answer the same question. Recorded answers are there at once; a model that was made here
// answers live, and one event streams both columns.
let heads = null, replay = null, state = null, busy = false, question = '';
let turn = 0, temperature = 0, length = 96;
let prompt = '';  // The name of the suggested question whose recorded answers are shown.
const status = h('p', {className: 'chat-status', role: 'status'});
const box = h('textarea', {id: 'prompt', rows: 2, maxLength: 4000, onkeydown: onKey});
const send = h('button', {className: 'primary', type: 'submit'});
const stop = h('button', {className: 'plain', type: 'button', hidden: true, onclick: end});
const suggest = h('div', {className: 'suggest'}), options = h('div', {className: 'chat-options'});
const choice = h('div', {className: 'choice'}), asked = h('p', {className: 'asked'});
const instead = h('p', {className: 'quiet instead', hidden: true});
const about = h('p', {className: 'quiet about'});
const own = h('div', {className: 'own'}), ladder = h('section', {className: 'ladder', hidden: true});
const trouble = h('div', {className: 'trouble'});
const form = h('form', {className: 'ask', onsubmit: submit}, box, h('div', {className: 'row'}, send, stop));
const none = h('div', {className: 'none', hidden: true});
const talk = h('div', {className: 'talk', hidden: true}, instead, suggest, asked, sideBySide, status, about,
  trouble, own, form, options, ladder);
const ask = newest(async () => {
  const id = ce.state.run;
  const both = await Promise.all([ce.ask(server.ask_sides, {id}), ce.ask(server.ask_recorded, {id, prompt})]);
  return both.every(Boolean) ? both : null;
});

const live = () => Boolean(heads?.right);
const recorded = () => Boolean(replay?.right);

async function load() {
  const got = await ask();
  if (!got) return;
  const [sides, answers] = got, wrong = sides.error || answers.error;
  if (wrong) {
    none.hidden = false;
    none.innerHTML = wrong;
    return;
  }
  const [first] = sides.options, known = list => list.some(([id]) => id === ce.state.run);
  if (first && !known(sides.options) && !known(answers.options)) {
    [ce.state.run] = first;
    ce.write();
    return load();
  }
  [heads, replay] = got;
  prompt = replay.prompt ?? '';
  draw();
}

function draw() {
  if (!heads) return;
  const ready = live() || recorded();
  none.hidden = ready;
  talk.hidden = !ready;
  none.replaceChildren(h('p', {}, t('chat.none')),
    h('button', {className: 'primary', onclick: () => ce.setTab('explore')}, t('chat.none_button')));
  drawChoice();
  if (!ready) return;
  const {left, right, rounded} = live() ? heads : replay;
  columns.original.title.replaceChildren(left.title, rounded ? h('small', {}, rounded) : '');
  columns.compressed.title.replaceChildren(right.title, right.grade ? h('small', {}, right.grade) : '');
  box.placeholder = t('chat.placeholder');
  box.setAttribute('aria-label', t('chat.prompt'));
  send.textContent = t('chat.send');
  stop.textContent = t('chat.stop');
  drawSuggestions();
  drawOptions();
  drawOwn();
  drawLadder();
  show();
}

function drawChoice() {
  const onchange = e => {
    state = null;
    question = '';
    ce.select(e.target.value, 'chat');
  };
  const chosen = live() ? ce.state.run : replay.id;
  const group = (key, pairs) => pairs.length ? h('optgroup', {label: t(key)}, optionList(pairs, chosen)) : '';
  const pick = heads.options.length + replay.options.length
    ? h('label', {}, t('chat.choose'),
        h('select', {id: 'side', onchange}, group('chat.group.live', heads.options),
          group('chat.group.recorded', replay.options)))
    : '';
  choice.replaceChildren(h('h2', {}, t('chat.title')), pick);
}

// A number between limits, `usual` where nothing was written.
const within = (text, low, high, usual) => Math.min(high, Math.max(low, Number(text) || usual));

function drawOptions() {
  const number = (label, min, max, step, value, put) => h('label', {}, label,
    h('input', {type: 'number', min, max, step, value, onchange: e => put(e.target.value)}));
  const quiet = (wanted, key) => wanted ? h('span', {className: 'quiet'}, t(key)) : '';
  options.replaceChildren(
    number(t('chat.tokens'), 8, 512, 8, length, text => { length = within(text, 8, 512, 96); }),
    number(tip(t('chat.temperature'), t('chat.temperature.help')), 0, 2, 0.1, temperature,
      text => { temperature = within(text, 0, 2, 0); }),
    quiet(heads.chats === false, 'chat.continues'), quiet(heads.busy, 'chat.busy'));
}

function show() {
  const [shown, said, words] = live() ? [heads, state, question] : [replay, replay.state, replay.asked];
  asked.textContent = words;
  asked.hidden = !words;
  drawColumns(shown, said, busy);
  send.disabled = busy;
  stop.hidden = !busy;
  status.textContent = said?.status ?? '';
  trouble.innerHTML = said?.error ?? '';
}

function onKey(e) {
  if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) submit(e);
}
function submit(e) {
  e.preventDefault();
  start(box.value.trim());
}

function start(words) {
  if (!words || busy || !live()) return;
  question = words;
  box.value = '';
  busy = true;
  turn += 1;
  state = null;
  draw();
  status.textContent = t('chat.waiting');
  trigger('ask', {
    lang: ce.lang,
    visitor: ce.visitor,
    id: ce.state.run,
    turn,
    messages: [{role: 'user', content: words}],
    max_tokens: length,
    temperature,
    seed: 0,
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
  ce.say('answered');
  busy = false;
  keep('ce-chat', {state, question});
  draw();
});
document.addEventListener('keydown', e => {
  if (e.key === 'Escape' && busy && ce.tab === 'chat') end();
});
ce.ready.then(() => {
  ({state, question} = kept('ce-chat') ?? {state, question});  // The last exchange outlives a reload.
  root.replaceChildren(choice, none, talk);
  ce.on('lang', load);
  ce.on('tab', tab => {
    if (tab === 'chat') load();
  });
  ce.on('select', () => {
    if (ce.tab === 'chat') load();
  });
  if (ce.tab === 'chat') load();
});
