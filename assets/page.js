// Shared by all panels: state, address bar, words, small helpers. Every panel's script starts with this text; the first makes `ce`.
const ce = window.ce ??= (() => {
  const bus = new EventTarget();
  let boot;
  const page = {
    ready: new Promise(resolve => { boot = resolve; }),
    on: (name, f) => bus.addEventListener(name, e => f(e.detail)),
    say: (name, detail) => bus.dispatchEvent(new CustomEvent(name, {detail})),
    // a word of the page with its {facts}
    t: (key, facts = {}) => (page.data.words[page.lang][key] ?? key).replace(/\{(\w+)\}/g, (_, k) => facts[k] ?? '?'),
    has: key => key in page.data.words[page.lang],
    // an element; children that are strings become text, never markup
    h(tag, attributes = {}, ...children) {
      const e = document.createElement(tag);
      for (const [k, v] of Object.entries(attributes)) {
        if (v === null || v === undefined || v === false) continue;
        if (k.startsWith('on')) e.addEventListener(k.slice(2), v);
        else if (k in e && k !== 'list' && k !== 'role') e[k] = v;
        else e.setAttribute(k, v === true ? '' : v);
      }
      e.append(...children.flat().filter(c => c !== null && c !== undefined && c !== false));
      return e;
    },
    // a word with its one-line explanation on hover and focus
    tip: (text, help) => page.h('span', {className: 'term', tabIndex: 0, 'data-tip': help, 'aria-description': help}, text),
    // ask a server function; null when the line is down
    async ask(f, what = {}) {
      try {
        const answer = await f({lang: page.lang, ...what});
        const lost = answer === undefined || answer === null;
        document.body.classList.toggle('ce-lost', lost);
        return lost ? null : answer;
      } catch (e) { document.body.classList.add('ce-lost'); return null; }
    },
    method: name => page.data.methods.find(m => m.name === name),
    model: name => page.data.models.find(m => m.name === name),
    // values of a step with the defaults filled in
    values: step => Object.fromEntries(page.method(step.method).params.map(p => [p.name, (page.memory[step.method] ?? {})[p.name] ?? p.default])),
    choices: (steps = page.state.steps) => ({model: page.state.model, recipe: steps.map(s => [s.method, page.values(s)]), ...page.state.settings}),
    // a secret that only this browser has: what it began, only it may stop
    visitor: (() => {
      const fresh = [...crypto.getRandomValues(new Uint8Array(24))].map(b => b.toString(16).padStart(2, '0')).join('');
      try {
        localStorage.removeItem('ce-visitor');
        const kept = localStorage.getItem('ce-token') ?? fresh;
        localStorage.setItem('ce-token', kept);
        return kept;
      } catch (e) { return fresh; }
    })(),
    memory: {},  // method -> values, so that a method keeps its knobs while another is shown
    defaults: () => ({...page.data.presets.quick, preset: 'quick', text: 'builtin', calibration: 'builtin', protocol: 'raw', seed: 0, activations: 'exact', cache_bits: 16, cache_keys: 'token'}),
    start(data) {
      page.data = data;
      read();
      document.documentElement.lang = page.lang;
      boot();
    },
    setLang(lang) {
      page.lang = lang;
      document.documentElement.lang = lang;
      page.write();
      page.say('lang');
    },
    setTab(tab) {
      page.tab = tab;
      document.body.dataset.tab = tab;
      page.write();
      page.say('tab', tab);
    },
    select(id, from = '') {
      if (!id) return;
      page.state.run = id;
      page.write();
      page.say('select', {id, from});
    },
    // the knobs of a stored run
    use(spec) {
      page.state.model = spec.model;
      page.state.steps = spec.recipe.slice(0, 2).map(([method]) => ({method}));
      for (const [method, values] of spec.recipe) page.memory[method] = {...values};
      for (const k of Object.keys(page.state.settings)) if (k in spec) page.state.settings[k] = spec[k];
      page.write();
      page.say('choices');
    },
    write() {
      const u = new URL(location), s = page.state, q = new URLSearchParams();
      const base = page.defaults();
      if (s.model !== page.data.first.model) q.set('model', s.model);
      s.steps.forEach((step, i) => {
        q.set(i ? 'then' : 'method', step.method);
        const values = page.values(step);
        for (const p of page.method(step.method).params) {
          if (p.main || values[p.name] !== p.default) q.set((i ? 'then.' : '') + p.name, values[p.name]);
        }
      });
      for (const [k, v] of Object.entries(s.settings)) if (v !== base[k]) q.set(k, v === null ? 'all' : v);
      for (const k of ['x', 'y']) if (s[k] !== page.data.view[k]) q.set(k, s[k]);
      if (s.run) q.set('run', s.run);
      if (page.tab !== 'explore') q.set('tab', page.tab);
      if (page.lang !== page.natural) q.set('lang', page.lang);
      for (const k of ['__theme']) if (u.searchParams.has(k)) q.set(k, u.searchParams.get(k));
      u.search = q.toString();
      if (u.href !== location.href) history.replaceState(null, '', u);
      if (parent !== window) parent.postMessage({queryString: u.search.slice(1)}, 'https://huggingface.co');
    },
  };
  // the address decides what is shown; what it names wrongly is said and replaced by the default
  function read() {
    const q = new URLSearchParams(location.search), first = page.data.first;
    page.natural = /^zh/i.test(navigator.language) ? 'zh-Hant' : 'en';
    page.lang = q.get('lang') in page.data.words ? q.get('lang') : page.natural;
    page.tab = q.get('tab') === 'chat' && page.data.chat ? 'chat' : 'explore';
    document.body.dataset.tab = page.tab;
    page.problems = [];
    const state = page.state = {model: first.model, steps: [{method: first.method}], settings: page.defaults(), run: (q.get('run') ?? '').slice(0, 100), protocol: '', budget: 0};
    page.memory = {[first.method]: {...first.values}};
    const model = q.get('model');
    if (model) {
      const plausible = page.model(model) || /^[\w.-]+\/[\w.-]+$/.test(model) || (!page.data.public && /[\\/]/.test(model));
      if (plausible) state.model = model;
      else page.problems.push(['link_model', {name: model, instead: first.model}]);
    }
    for (const [key, prefix] of [['method', ''], ['then', 'then.']]) {
      const name = q.get(key) ?? (prefix ? null : first.method);
      if (!name) continue;
      const method = page.method(name);
      if (!method) { page.problems.push(['link_method', {name, instead: first.method}]); continue; }
      if (key === 'method') state.steps = [{method: name}]; else state.steps.push({method: name});
      const values = page.memory[name] = prefix || q.has(key) ? {} : {...first.values};
      for (const p of method.params) {
        const got = q.get(prefix + p.name);
        if (got === null) continue;
        const value = convert(p, got);
        if (value === undefined) page.problems.push(['link_knob', {name: page.t(`param.${p.name}`), got, allowed: p.choices ? p.choices.join(', ') : p.lo !== null ? `${p.lo} – ${p.hi}` : 'true, false'}]);
        else values[p.name] = value;
      }
    }
    if (page.data.presets[q.get('preset')]) Object.assign(state.settings, page.data.presets[q.get('preset')], {preset: q.get('preset')});
    for (const k of Object.keys(state.settings)) {
      const got = q.get(k);
      if (got === null || k === 'preset') continue;
      const numeric = ['tokens', 'calibration_tokens', 'window', 'seed', 'table_bits', 'cache_bits'].includes(k);
      if (k === 'tokens' && got === 'all') state.settings[k] = null;
      else if (!numeric) state.settings[k] = got;
      else if (/^\d+$/.test(got)) state.settings[k] = Number(got);
      else page.problems.push(['link_knob', {name: page.t(`setting.${k}`), got, allowed: '0, 1, 2, …'}]);
    }
    for (const k of ['x', 'y']) state[k] = page.data.axes.includes(q.get(k)) ? q.get(k) : page.data.view[k];
  }
  function convert(p, text) {
    if (p.type === 'bool') return {true: true, false: false}[text];
    if (p.type === 'str') return !p.choices || p.choices.includes(text) ? text : undefined;
    const n = Number(text);
    if (text === '' || !Number.isFinite(n) || (p.lo !== null && (n < p.lo || n > p.hi)) || (p.type === 'int' && !Number.isInteger(n))) return undefined;
    return n;
  }
  return page;
})();
const {h} = ce;
const root = element.querySelector('.panel');
