// Learn in the app: the same pages as /learn/, driving the live page. Loaded when the tab is first opened.
let learn = null;

// What a visitor has to do on the live page before a try counts as done.
const happens = (event, meant) => new Promise(done => ce.on(event, what => meant(what) && done()));
const DONE = {
  shown: one => happens('card', ({id}) => !one.run || id === one.run),
  answered: () => happens('answered', () => true),
  opened: one => happens('tab', tab => tab === one.tab),
};

const linklike = (words, onclick) => h('button', {className: 'linklike', onclick}, words);

function tryButton(one, words, done) {
  return linklike(words, () => {
    DONE[one.event ?? 'shown'](one).then(done);
    ce.setTab(one.tab ?? 'explore');
    if (one.family !== undefined) ce.light(one.family);
    if (one.recipe) ce.use({model: ce.data.first.model, recipe: one.recipe});
    if (one.run) ce.select(one.run, 'learn');
  });
}

async function open() {
  const base = new URL('learn/', location.origin + location.pathname.replace(/[^/]*$/, '')).href;
  const [{mount}, {shared}] = await Promise.all([import(`${base}frame.js`), import(`${base}shared.js`)]);
  const style = h('link', {rel: 'stylesheet', href: `${base}learn.css`});
  document.head.append(style);
  const host = shared({h, s, fill, kept, keep, sizeWords}, {
    base,
    home: base,
    lang: () => ce.lang,
    visitor: ce.visitor,
    on: (name, f) => ce.on(name, f),
    tryButton,
    place: () => ({lesson: ce.state.lesson, code: ce.state.code, knobs: ce.state.knobs, seed: ce.state.seed}),
    setPlace: what => {
      Object.assign(ce.state, what);
      ce.write();
    },
    ask: async (question, what) => {
      try {
        const body = JSON.stringify({question, ask: {lang: ce.lang, ...what}});
        return await (
          await fetch(`${base}ask`, {method: 'POST', headers: {'content-type': 'application/json'}, body}))
          .json();
      } catch { return null; }
    },
    openMethod: (method, words) => linklike(words,
      () => {
        ce.use({model: ce.data.first.model, recipe: [[method, {}]]});
        ce.setTab('explore');
      }),
    openRun: (best, words) => linklike(words,
      () => {
        ce.setTab('explore');
        ce.select(best.id, 'learn');
      }),
  });
  await mount(root, host);
}
const first = () => {
  if (ce.tab === 'learn') learn ??= open();
};
ce.ready.then(() => {
  ce.on('tab', first);
  first();
});
