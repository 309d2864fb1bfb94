// Small things without state, which all panels share.

// A sentence with its {facts} filled in.
const fill = (sentence, facts = {}) => sentence.replace(/\{(\w+)\}/g, (_, name) => facts[name] ?? '?');

// An element. Children that are strings become text, never markup; empty ones are left out.
function h(tag, attributes = {}, ...children) {
  const none = x => x === null || x === undefined || x === false;
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (none(value)) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== 'list' && name !== 'role') element[name] = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat().filter(child => !none(child)));
  return element;
}

const SVG = 'http://www.w3.org/2000/svg';

// An element of a drawing.
function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(Boolean));
  return element;
}

// A word with its explanation on hover and focus.
const tip = (text, help) =>
  h('span', {className: 'term', tabIndex: 0, 'data-tip': help, 'aria-description': help}, text);

// The options of a list, from pairs of value and name.
const optionList = (pairs, chosen) =>
  pairs.map(([value, name]) => h('option', {value, selected: value === chosen}, name));

// The same for models, in groups by their series.
function modelOptions(models, chosen) {
  const series = [...new Set(models.map(m => m.series))];
  return series.map(
    label => h('optgroup', {label},
      optionList(models.filter(m => m.series === label).map(m => [m.name, m.title]), chosen)));
}

const sleep = milliseconds => new Promise(done => setTimeout(done, milliseconds));

// Only the newest of several askings is answered, and it is asked again until the line is back: `ask` gives
// null while it is down. Whoever was overtaken gets null. `after`: milliseconds to wait, in which another may
// overtake.
function newest(ask, {again = 2000} = {}) {
  let turn = 0;
  return async (what, {after = 0} = {}) => {
    const mine = ++turn;
    await sleep(after);
    while (mine === turn) {
      const got = await ask(what);
      if (mine !== turn) break;
      if (got) return got;
      await sleep(again);
    }
    return null;
  };
}

// What this browser remembers, null where it remembers nothing or may not.
function kept(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch { return null; }
}
function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
  } catch { /* A browser that keeps nothing still shows everything. */
  }
}

// The tab that a key leads to from the present one, null for any other key.
function tabAt(tabs, now, key) {
  const i = tabs.indexOf(now), last = tabs.length - 1;
  const place = {ArrowRight: i === last ? 0 : i + 1,
    ArrowLeft: i <= 0 ? last : i - 1,
    Home: 0,
    End: last}[key];
  return place === undefined ? null : tabs[place];
}

// About how large a file is: two digits of gigabytes, whole megabytes.
const sizeWords = bytes =>
  bytes >= 1e9 ? `${(bytes / 1e9).toPrecision(2)} GB` : `${Math.round(bytes / 1e6)} MB`;

// Whether a parameter has an effect beside the others: its conditions hold, where they are set at all.
const effective = (param, values) =>
  Object.entries(param.when ?? {}).every(([name, wanted]) => (values[name] ?? wanted) === wanted);

// Names of the parameters of a step that do nothing behind the step before it, which hands on its own.
function idle(methods, steps, i) {
  const find = step => methods.find(m => m.name === step?.method);
  const method = find(steps[i]), before = find(steps[i - 1])?.params.map(p => p.name) ?? [];
  const {inherits = [], idle = []} = method ?? {};
  return inherits.length && inherits.every(name => before.includes(name)) ? idle : [];
}
