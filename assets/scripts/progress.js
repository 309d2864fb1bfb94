// A run on its way: begun, followed until its end, stopped, and found again after a reload.
let following = '', beginning = false, polls = 0, stage = '', began = 0, slow = false, thenChat = false;
const trouble = h('div', {className: 'trouble'});
const bar = h('progress', {max: 1, value: 0}), line = h('p', {className: 'stage'});
const say = h('span', {className: 'sr', role: 'status'}), title = h('p', {className: 'now'});
const picture = h('div', {className: 'picture', hidden: true});
const stop = h('button', {className: 'plain', type: 'button', onclick: end});
const enough = h('button', {className: 'plain', type: 'button', hidden: true, onclick: settle});
const progress = h('div', {className: 'progress', hidden: true}, title,
  h('div', {className: 'row'}, bar, stop), line, picture, enough);

// `choices`: of another run than the knobs say.
async function start({again = false, chat = false, choices = null} = {}) {
  if (following || beginning) return;
  trouble.replaceChildren();
  if (weighed.stored && !again && !choices) return ce.select(weighed.stored, 'button');
  if (go.disabled && !choices) return;
  thenChat = chat;
  beginning = true;  // One press begins one run, however late the answer is.
  drawButton();
  const got = await ce.ask(server.ask_begin, {choices: choices ?? ce.choices(), visitor: ce.visitor, again});
  beginning = false;
  if (got?.instead && !choices) {
    take(got);
    return start({again, chat});
  }
  if (!got?.id) {
    if (got) refuse(got.error);
    return drawButton();
  }
  ce.state.run = got.id;
  ce.write();
  follow(got.id);
}

// An end that isn't a result; what was to run after it doesn't.
function refuse(html) {
  trouble.innerHTML = html;
  keep('ce-four', null);
}

function follow(id) {
  following = id;
  began = performance.now();
  slow = false;
  stage = '';
  keep('ce-follow', id);
  progress.hidden = false;
  picture.hidden = enough.hidden = true;
  enough.disabled = false;
  bar.removeAttribute('value');
  title.textContent = '';
  line.textContent = t('progress.starting');
  drawButton();
  tick(id);
}

function leave() {
  following = '';
  keep('ce-follow', null);
  progress.hidden = true;
  drawKnobs();
}

// Whether a run is still to end; nobody knows while the line is down.
const onItsWay = got => !got || got.status === 'queued' || got.status === 'running';
// Milliseconds until a run is asked after again.
const pause = got => got?.status === 'queued' ? 2500 : 400;

// Ask after a run again and again; a newer call of this takes over.
async function tick(id) {
  const mine = ++polls, current = () => mine === polls && following === id && root.isConnected;
  const got = await ce.ask(server.ask_poll, {id, visitor: ce.visitor});
  if (!current()) return;
  if (!onItsWay(got)) return finish(id, got);
  if (got) show(got);
  else line.textContent = t('app.lost');
  await sleep(pause(got));
  if (current()) tick(id);
}

function show(got) {
  slow ||= Boolean(weighed.seconds) && performance.now() - began > 2000 * weighed.seconds;
  title.textContent = t('progress.title', {name: got.name});
  line.textContent = [got.stage, got.left, slow ? t('progress.slower') : ''].filter(Boolean).join(' · ');
  ce.say('progress', {id: following, words: line.textContent});
  if (got.status === 'running' && got.done) bar.value = got.done;
  else bar.removeAttribute('value');
  picture.hidden = !got.curve;
  if (got.curve) picture.innerHTML = got.curve;
  enough.hidden = !got.enough;
  // A reader hears of a new stage, not of each step in it.
  const now = got.stage.replace(/\d+/g, '');
  if (now !== stage) {
    stage = now;
    say.textContent = got.stage;
  }
}

function finish(id, got) {
  leave();
  ce.say('results');
  if (got.status === 'ok') {
    say.textContent = t('progress.done', {name: got.name});
    ce.select(got.result || id, 'run');
    if (thenChat) ce.setTab('chat');
  } else {
    refuse(got.error);
    if (ce.state.run === id && got.status !== 'unknown') ce.select(id, 'run');
  }
  thenChat = false;
  drawButton();
  weigh();
  const [next, ...rest] = kept('ce-four') ?? [];
  if (!next) return;
  keep('ce-four', rest);
  start({choices: next});
}

async function settle() {
  enough.disabled = true;
  if (following) await ce.ask(server.ask_enough, {id: following, visitor: ce.visitor});
}

async function end() {
  if (!following) return;
  stop.disabled = true;
  keep('ce-four', null);
  const got = await ce.ask(server.ask_stop, {id: following, visitor: ce.visitor});
  stop.disabled = false;
  if (!got?.left) return;
  leave();
  trouble.replaceChildren(h('p', {className: 'quiet'}, got.left));
  drawButton();
}

// Four points of the main knob, one after the other: each visitor has one place in the line.
function runFour() {
  const p = mainOf(lastStep());
  if (!p || following || beginning) return;
  const list = fourPoints(p).map(value => {
    const run = ce.choices(), [method, values] = run.recipe.at(-1);
    return {...run, recipe: [...run.recipe.slice(0, -1), [method, {...values, [p.name]: value}]]};
  });
  keep('ce-four', list.slice(1));
  start({choices: list[0]});
}

// A run that was on its way before a reload is found again.
async function findAgain() {
  const mine = kept('ce-follow'), id = mine || ce.state.run;
  if (!id) return;
  const got = await ce.ask(server.ask_poll, {id, visitor: ce.visitor});
  if (!got || following || beginning) return;
  if (onItsWay(got)) return follow(id);
  if (!mine) return;
  keep('ce-follow', null);
  if (got.status !== 'ok') trouble.innerHTML = got.error;
  else if (!ce.state.run) ce.select(got.result || id, 'run');
}
