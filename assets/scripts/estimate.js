// What a run will cost, asked for at each change, and the line that foresees it on the front.
const estimate = h('div', {className: 'estimate'});
let weighed = {path: [], stored: ''};
let weighedFor = '';  // What the knobs said when the estimate was asked for last.
let told = '';        // Why new runs are measured otherwise than the shipped ones, where they are.
const weighing = newest(() => ce.ask(server.ask_weigh, {choices: ce.choices()}), {again: 2500});

// Ask for the estimate, after a while in which another change may come. True when this was the last change.
async function weigh(wait = 0) {
  if (!estimate.childElementCount)
    estimate.replaceChildren(h('p', {className: 'wait quiet'}, t('controls.wait')));
  forget();
  const got = await weighing(null, {after: wait});
  if (!got) return false;
  if (got.instead) {
    take(got);
    return weigh();
  }
  weighed = got;
  estimate.innerHTML = got.error || got.html;
  if (got.second) estimate.append(h('p', {className: 'more second-told'}, got.second));
  if (told && ce.state.settings.text === 'builtin') estimate.append(h('p', {className: 'more told'}, told));
  drawButton();
  const step = lastStep(), p = mainOf(step);
  ce.say('ghost', p && !weighed.stored ? ghostAt(weighed, ce.values(step)[p.name]) : null);
  return true;
}

// Other knobs than before are perhaps not stored: until the answer says so, the button runs them.
function forget() {
  const now = JSON.stringify(ce.choices());
  if (now === weighedFor) return;
  weighedFor = now;
  weighed.stored = '';
  drawButton();
}

// Other settings than those that a first visit has, and why.
function take({instead, told: why}) {
  told = why;
  Object.assign(ce.state.settings, instead);
  changed();
}

// The point of the path at a value of the main knob.
const pointAt = (path, value) => path.find(point => Math.abs(point.at - value) < 1e-9);

// Where the ghost stands at that value: on the path, else at the size that was estimated, else nowhere.
function ghostAt({path, bytes, hint}, value) {
  const point = pointAt(path, value);
  if (point) return {bytes: point.bytes, words: point.hint};
  return bytes ? {bytes, words: hint} : null;
}

// While the knob moves: the size at once, from the path; the rest comes with the next estimate.
function foresee(value) {
  const point = pointAt(weighed.path, value), line = estimate.querySelector('.size');
  ce.say('ghost', ghostAt(weighed, value));
  if (!point) return;
  if (line) {
    line.querySelector('b').textContent = point.size;
    line.querySelector('span').textContent = point.smaller;
  }
  weighed.stored = '';
  drawButton(true);
}
