// Shared by all panels: state, words, the line to the server. Every panel's script starts with the shared
// files (small.js, link.js and this one); the first that runs makes `ce`, and the others find it.
const ce = window.ce ??= (() => {
  const bus = new EventTarget();
  let started;
  const page = {
    ready: new Promise(resolve => { started = resolve; }),
    on: (name, f) => bus.addEventListener(name, e => f(e.detail)),
    say: (name, detail) => bus.dispatchEvent(new CustomEvent(name, {detail})),
    visitor: token(),
    memory: {},  // The values of each method, so that it keeps its knobs while another is shown.

    start(data) {
      const natural = /^zh/i.test(navigator.language) ? 'zh-Hant' : 'en';
      Object.assign(page, {data, natural}, readLink(location.search, data, natural));
      document.body.dataset.tab = page.tab;
      document.documentElement.lang = page.lang;
      started();
    },

    // A word of the page with its {facts}.
    t: (key, facts) => fill(page.data.words[page.lang][key] ?? key, facts),
    has: key => key in page.data.words[page.lang],
    // A sentence for {n} things: `<key>.one` for one thing, where the language has such a form.
    many: (key, n) => page.t(n === 1 && page.has(`${key}.one`) ? `${key}.one` : key, {n}),

    // The answer of a server function, null while the line is down.
    async ask(f, what = {}) {
      let answer = null;
      try {
        answer = await f({lang: page.lang, ...what}) ?? null;
      } catch { /* The line is down. */
      }
      document.body.classList.toggle('ce-lost', answer === null);
      return answer;
    },

    method: name => page.data.methods.find(m => m.name === name),
    model: name => page.data.models.find(m => m.name === name),
    values: step => valuesOf(page.method(step.method), page.memory[step.method]),
    choices: () => ({
      model: page.state.model,
      recipe: page.state.steps.map(step => [step.method, page.values(step)]),
      ...page.state.settings,
    }),

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
    // The family that the figure shows before the others; "" for all alike.
    light(family) {
      page.state.family = family;
      page.write();
      page.say('lit');
    },
    select(id, from = '') {
      if (!id) return;
      page.state.run = id;
      page.write();
      page.say('select', {id, from});
    },

    // The knobs of a stored run.
    use(spec) {
      const {settings} = page.state;
      page.state.model = spec.model;
      page.state.steps = spec.recipe.slice(0, 2).map(([method]) => ({method}));
      for (const [method, values] of spec.recipe) page.memory[method] = {...values};
      for (const key of Object.keys(settings))
        if (key in spec) settings[key] = spec[key];
      page.write();
      page.say('choices');
    },

    // The address of what is shown. In a Space's frame the page around it keeps the address.
    write() {
      const u = new URL(location), q = writeLink(page, page.data), theme = u.searchParams.get('__theme');
      if (theme !== null) q.set('__theme', theme);
      u.search = q.toString();
      if (u.href !== location.href) history.replaceState(null, '', u);
      if (parent !== window) parent.postMessage({queryString: u.search.slice(1)}, 'https://huggingface.co');
    },
  };

  // A secret that only this browser has: what it began, only it may stop.
  function token() {
    const bytes = [...crypto.getRandomValues(new Uint8Array(24))];
    const fresh = bytes.map(b => b.toString(16).padStart(2, '0')).join('');
    try {
      const known = localStorage.getItem('ce-token') ?? fresh;
      localStorage.setItem('ce-token', known);
      return known;
    } catch { return fresh; }
  }
  return page;
})();
const {t} = ce;
const root = element.querySelector('.panel');
