// Learn: the map of the survey, and one page for each lesson. It runs in the app's tab
// (assets/scripts/learn.js) and by itself (index.html). Whoever mounts it gives `host`: what drives the live
// page, the language, the line to the server if there is one.
import {classOf} from './class.js';
import {contents} from './contents.js';
import {kitOf} from './kit.js';
import {questionOf} from './question.js';
import {drawing, seedOf} from './seed.js';
import {VIEWS} from './teacher.js';

const KEPT = 'ce-learn';
const json = async url => (await fetch(url)).json();

export async function mount(root, host) {
  const {h, fill, kept, keep, base} = host;
  const map = await json(`${base}map.json`), words = {}, files = new Map();
  // What this browser knows of each lesson: the guess, whether the answer was shown, which tries were done,
  // and the seed under which it was answered.
  const memory = kept(KEPT) ?? {};
  let shown = null, turn = 0;

  const frame = {
    ...host,
    map,
    memory,
    root,
    t: (key, facts) => fill(words[host.lang()][key] ?? key, facts),
    remember(lesson, what) {
      memory[lesson] = what;
      keep(KEPT, memory);
    },
    // A lesson's script, data and words, loaded once.
    async load(name) {
      const folder = `${base}lessons/${name}/`, lang = host.lang();
      if (!files.has(name))
        files.set(name, Promise.all([import(`${folder}lesson.js`), json(`${folder}data.json`)]));
      if (!files.has(`${name}.${lang}`)) files.set(`${name}.${lang}`, json(`${folder}${lang}.json`));
      const [[script, data], own] = await Promise.all([files.get(name), files.get(`${name}.${lang}`)]);
      const drawn = drawing(seedOf(host.place()), name);
      return {make: script.default, data: drawn.shown(data), own, drawn};
    },
    go(name) {
      host.setPlace({lesson: name, knobs: ''});
      return draw().then(() => root.querySelector('h2')?.focus());
    },
  };
  frame.group = classOf(frame);

  async function draw() {
    const mine = ++turn, lang = host.lang();
    words[lang] ??= await json(`${base}words/${lang}.json`);
    const {lesson} = host.place();
    const known = map.lessons.some(l => l.name === lesson) ? lesson : '';
    const view = Object.hasOwn(VIEWS, lesson) ? await VIEWS[lesson](frame) : null;
    const loaded = known ? await frame.load(known) : null;
    if (mine !== turn) return;
    shown?.close();
    shown = known ? page(frame, known, loaded) : view ?? contents(frame);
    root.replaceChildren(...shown.parts.filter(Boolean));
    root.dataset.lesson = lesson;
    shown.opened?.();
    frame.group.look(known, shown);
  }
  host.on('lang', draw);
  host.on('place', draw);
  await draw();
  return frame;
}

// One lesson: a sentence, the figure, the question, the answer, and what to try on the live page.
function page(frame, name, {make, data, own, drawn}) {
  const {h, t, map, memory} = frame, {seed: asked} = frame.place(), seed = seedOf(frame.place()),
                    i = map.lessons.findIndex(l => l.name === name);
  const tell = (key, facts) => frame.fill(own[key] ?? key, {...frame.said(data.facts), ...facts});
  const figure = h('div', {className: 'lesson-figure', role: 'img'});
  const spoken = h('p', {className: 'sr', 'aria-live': 'polite'});
  const kit = {...kitOf(frame, tell, figure, redraw), ...drawn};
  const lesson = make(kit, data);
  let width = 0, waiting = 0;

  function redraw() {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      if (!figure.clientWidth) return;
      width = figure.clientWidth;
      figure.replaceChildren(lesson.draw(width));
      const said = lesson.about?.() ?? '';
      figure.setAttribute('aria-label', said || tell('title'));
      if (spoken.textContent !== said) spoken.textContent = said;
    });
  }
  const watcher = new ResizeObserver(() => {
    if (figure.clientWidth !== width) redraw();
  });
  // Under another seed it is another question.
  const state = () => (memory[name]?.seed ?? '') === seed ? memory[name] ?? {} : {tried: memory[name]?.tried};
  const remember = what => frame.remember(name, {...state(), seed, ...what});
  const reveal = h('div', {className: 'reveal', 'aria-live': 'polite'});
  const question = data.question && questionOf(frame, {name, data, tell, lesson, kit, onguess, onshow: show});

  function onguess(guess) {
    remember({guess, figure: structuredClone(lesson.hold?.())});
    frame.group.send(name, guess);
  }
  function show() {
    remember({shown: true});
    question?.reveal(state().guess, frame.group.guesses(name));
    lesson.revealed?.();
    redraw();
    reveal.replaceChildren(h('p', {className: 'why'}, tell('why')), tries());
  }
  const tries = () =>
    h('div', {className: 'tries'}, h('h3', {}, t('try')), (data.tries ?? []).map((one, k) => {
      const done = state().tried?.includes(k);
      return h('p', {className: done ? 'try done' : 'try'}, frame.tryButton(one, tell(`try.${k}`), () => {
        remember({tried: [...new Set([...state().tried ?? [], k])]});
        if (state().shown) show();
      }), h('span', {className: 'check', role: 'status'}, done ? t('try.done') : ''));
    }));

  // A link to this lesson in this language, with the figure's knobs as they are.
  function copy(e) {
    const link = frame.lessonLink(name, kit.knobs());
    const answer = words => { e.target.textContent = words; };
    // Without the clipboard, which a page without https has not, the link itself is shown.
    if (!navigator.clipboard) return answer(link);
    navigator.clipboard.writeText(link).then(() => answer(t('copied')), () => answer(link));
  }
  const step = (to, key) => {
    const next = map.lessons[to];
    return next ? h('button', {className: 'plain', onclick: () => frame.go(next.name)}, t(key)) : '';
  };
  const parts = [
    h('nav', {className: 'lesson-nav', 'aria-label': t('lessons')},
      h('button', {className: 'linklike', onclick: () => frame.go('')}, t('contents')),
      h('span', {className: 'quiet'}, t('number', {n: i + 1, of: map.lessons.length})),
      asked ? h('span', {className: 'quiet'}, t('seed', {seed: asked})) : '',
      h('button', {className: 'linklike', onclick: copy}, t('copy_link')), frame.group.badge()),
    h('h2', {tabIndex: -1}, tell('title')),
    h('p', {className: 'lead'}, tell('lead')),
    figure,
    spoken,
    h('div', {className: 'lesson-controls'}, lesson.controls ?? []),
    question?.root,
    reveal,
    h('p', {className: 'quiet source'}, tell('source')),
    h('nav', {className: 'lesson-steps', 'aria-label': t('lessons')}, step(i - 1, 'back'),
      step(i + 1, 'next')),
  ];
  return {
    parts,
    name,
    show: () => {
      if (!state().shown) show();
    },
    tally: list => question?.tally(list),
    opened() {
      watcher.observe(figure);
      redraw();
      if (state().guess !== undefined) question?.restore(state().guess);
      if (state().figure !== undefined && !kit.linked) lesson.take?.(structuredClone(state().figure));
      if (state().shown || !question) show();
    },
    close() {
      watcher.disconnect();
      cancelAnimationFrame(waiting);
      lesson.close?.();
    },
  };
}
