// The address and the state of the page, each from the other. `data` is what the server tells once
// (Page.boot).

const settingsAtFirst = data => ({
  ...data.first.settings,
  seed: 0,
  activations: 'exact',
  cache_bits: 16,
  cache_keys: 'token',
});

// A method's values: what was chosen, and the defaults of the rest.
const valuesOf = (method, chosen = {}) =>
  Object.fromEntries(method.params.map(p => [p.name, chosen[p.name] ?? p.default]));

// What an address shows. `natural` is the browser's own language. What the address names wrongly is replaced
// by the default and becomes a problem: the code of its words and their facts.
function readLink(query, data, natural) {
  const q = new URLSearchParams(query), problems = [];
  const lang = Object.hasOwn(data.words, q.get('lang')) ? q.get('lang') : natural;
  const name = key => data.words[lang][key];
  const tab = data.tabs.includes(q.get('tab')) ? q.get('tab') : data.tabs[0];
  const {steps, memory} = readSteps(q, data, name, problems);
  const state = {
    model: readModel(q, data, problems),
    steps,
    settings: readSettings(q, data, name, problems),
    run: (q.get('run') ?? '').slice(0, 100),
    protocol: '',
    budget: 0,
    deploy: q.get('deploy') === 'yes',
    family: data.methods.some(m => m.family === q.get('family')) ? q.get('family') : '',
  };
  const lesson = q.get('lesson') ?? '', code = q.get('class') ?? '';
  state.lesson = /^[a-z_]{1,40}$/.test(lesson) ? lesson : '';
  state.knobs = (q.get('knobs') ?? '').slice(0, 200);
  state.seed = (q.get('lesson_seed') ?? '').slice(0, 40);  // `seed` is a run's
  state.code = /^[A-Z0-9]{1,12}$/.test(code) ? code : '';
  for (const axis of ['x', 'y'])
    state[axis] = data.axes.includes(q.get(axis)) ? q.get(axis) : data.view[axis];
  return {lang, tab, state, memory, problems};
}

function readModel(q, data, problems) {
  const model = q.get('model'), instead = data.first.model;
  if (!model) return instead;
  const listed = data.models.some(m => m.name === model);
  const path = !data.public && /[\\/]/.test(model);
  if (listed || path || /^[\w.-]+\/[\w.-]+$/.test(model)) return model;
  problems.push(['link_model', {name: model, instead}]);
  return instead;
}

function readSteps(q, data, name, problems) {
  const {first} = data, memory = {[first.method]: {...first.values}};
  const steps = [{method: first.method}];
  for (const [i, key, prefix] of [[0, 'method', ''], [1, 'then', 'then.']]) {
    const wanted = q.get(key) ?? (i ? null : first.method);
    if (!wanted) continue;
    const method = data.methods.find(m => m.name === wanted);
    if (!method) {
      problems.push(['link_method', {name: wanted, instead: first.method}]);
      continue;
    }
    steps.splice(i, 1, {method: wanted});
    memory[wanted] = q.has(key) ? {} : {...first.values};
    for (const p of method.params) {
      const got = q.get(prefix + p.name);
      if (got === null) continue;
      const value = readValue(p, got);
      if (value !== undefined) memory[wanted][p.name] = value;
      else problems.push(['link_knob', {name: name(`param.${p.name}`), got, allowed: allowed(p)}]);
    }
  }
  return {steps, memory};
}

function readSettings(q, data, name, problems) {
  const usual = settingsAtFirst(data), settings = {...usual}, preset = q.get('preset');
  if (Object.hasOwn(data.presets, preset)) Object.assign(settings, data.presets[preset], {preset});
  for (const key of Object.keys(settings)) {
    const got = q.get(key);
    if (got === null || key === 'preset') continue;
    if (key === 'tokens' && got === 'all') settings[key] = null;
    else if (typeof usual[key] !== 'number') settings[key] = got;
    else if (/^\d+$/.test(got)) settings[key] = Number(got);
    else problems.push(['link_knob', {name: name(`setting.${key}`), got, allowed: '0, 1, 2, …'}]);
  }
  return settings;
}

// A parameter's value from its text, undefined where it isn't allowed.
function readValue(p, text) {
  if (p.type === 'bool') return {true: true, false: false, __proto__: null}[text];
  if (p.type === 'str') return !p.choices || p.choices.includes(text) ? text : undefined;
  const n = Number(text);
  if (text === '' || !Number.isFinite(n) || (p.type === 'int' && !Number.isInteger(n))) return undefined;
  return p.lo !== null && (n < p.lo || n > p.hi) ? undefined : n;
}

const allowed = p => p.choices ? p.choices.join(', ') : p.lo !== null ? `${p.lo} – ${p.hi}` : 'true, false';

// The query of what is shown: only what differs from a first visit, and the main knobs. What has no effect is
// left out.
function writeLink({state, memory, lang, natural, tab}, data) {
  const q = new URLSearchParams(), usual = settingsAtFirst(data);
  if (state.model !== data.first.model) q.set('model', state.model);
  state.steps.forEach((step, i) => {
    const method = data.methods.find(m => m.name === step.method),
          values = valuesOf(method, memory[step.method]);
    const silent = idle(data.methods, state.steps, i);
    q.set(i ? 'then' : 'method', step.method);
    for (const p of method.params) {
      if (silent.includes(p.name) || !effective(p, values)) continue;
      if (p.main || values[p.name] !== p.default) q.set((i ? 'then.' : '') + p.name, values[p.name]);
    }
  });
  for (const [key, value] of Object.entries(state.settings)) {
    if (value !== usual[key]) q.set(key, value === null ? 'all' : value);
  }
  for (const axis of ['x', 'y'])
    if (state[axis] !== data.view[axis]) q.set(axis, state[axis]);
  if (state.family) q.set('family', state.family);
  if (state.deploy) q.set('deploy', 'yes');
  if (state.run) q.set('run', state.run);
  if (tab !== data.tabs[0]) q.set('tab', tab);
  if (tab === 'learn' && state.lesson) q.set('lesson', state.lesson);
  if (tab === 'learn' && state.knobs) q.set('knobs', state.knobs);
  if (tab === 'learn' && state.seed) q.set('lesson_seed', state.seed);
  if (state.code) q.set('class', state.code);
  if (lang !== natural) q.set('lang', lang);
  return q;
}
