// A class: many phones join by a code, their guesses arrive, and the teacher's screen shows them beside the
// answer. Nobody has an account. The server keeps the guesses for a day at most
// (evaluation/learning/classes.py).
const KEPT = 'ce-class', EVERY = 2500;

export function classOf(frame) {
  const {h, t, kept, keep} = frame, {code} = frame.place();
  // {code, key}: key only in the browser of the teacher who opened the class.
  let mine = kept(KEPT), now = null, page = null, wrong = '', timer = 0, followed = null, panel = null,
      qr = '';
  if (code && mine?.code !== code) mine = null;
  const can = () => Boolean(frame.ask);
  const joined = () => mine?.code ?? frame.place().code ?? '';
  const leads = () => Boolean(mine?.key && mine.code === joined());

  async function ask(question, what = {}) {
    const got = await frame.ask(question, {code: joined(), ...(leads() ? {key: mine.key} : {}), ...what});
    wrong = got?.error ?? '';
    if (got?.code === 'class_unknown') leave(wrong);
    return got && !got.error ? got : null;
  }
  async function poll() {
    clearTimeout(timer);
    if (!can() || !joined()) return;
    const got = await ask('class_look', {lesson: page?.name ?? ''});
    if (got) take(got);
    if (joined()) timer = setTimeout(poll, EVERY);
  }
  function take(got) {
    now = got;
    if (page?.name && (leads() || got.shown.includes(page.name))) page.tally(got.guesses);
    // Phones follow the teacher to a lesson, once, and to its answer.
    if (!leads() && got.lesson && got.lesson !== followed) {
      followed = got.lesson;
      if (page?.name !== got.lesson) frame.go(got.lesson);
    }
    if (page?.name && got.shown.includes(page.name)) page.show();
    redraw();
  }
  function leave(why = '') {
    clearTimeout(timer);
    wrong = why;
    mine = now = null;
    qr = '';
    keep(KEPT, null);
    frame.setPlace({code: ''});
    redraw();
  }
  async function open() {
    const got = await frame.ask('class_open', {});
    wrong = got?.error ?? (got ? '' : t('class.down'));
    if (got?.code) {
      mine = got;
      keep(KEPT, mine);
      frame.setPlace({code: got.code});
      poll();
    }
    redraw();
  }
  // The code's picture, asked for once.
  async function picture() {
    const got = await frame.ask('class_code', {link: frame.joinLink(joined())});
    qr = got?.svg ?? ' ';
    redraw();
  }
  async function join(text) {
    const wanted = text.trim().toUpperCase();
    if (!wanted) return;
    mine = null;
    frame.setPlace({code: wanted});
    await poll();
    redraw();
  }
  const lead = what => ask('class_lead', what).then(got => {
    if (got) take(got);
    redraw();
  });

  const plain = (key, onclick) => h('button', {className: 'plain', onclick}, t(key));
  const close = () => lead({close: true}).then(() => leave());

  function opened() {
    const link = frame.joinLink(joined());
    if (leads() && !qr) picture();
    return [
      h('p', {className: 'class-code'}, t('class.code'), ' ', h('b', {}, joined())),
      leads() ? h('div', {className: 'qr', role: 'img', 'aria-label': link, innerHTML: qr}) : '',
      leads() ? h('p', {}, h('a', {href: link}, link)) : '',
      h('p', {className: 'quiet'}, t(leads() ? 'class.leads' : 'class.joined', {n: now?.members ?? 0})),
      h('p', {className: 'acts'},
        leads() ? [plain('class.close', close), plain('class.csv', csv)]
                : plain('class.leave', () => leave())),
    ];
  }
  function closed() {
    const field = h('input',
      {type: 'text', id: 'class-field', autocapitalize: 'characters', spellcheck: false, maxLength: 12});
    const onsubmit = e => {
      e.preventDefault();
      join(field.value);
    };
    return [
      h('form', {className: 'class-join', onsubmit}, h('label', {htmlFor: 'class-field'}, t('class.join')),
        field, h('button', {className: 'plain'}, t('class.go'))),
      h('button', {className: 'linklike', onclick: open}, t('class.open')),
      h('button', {className: 'linklike', onclick: () => frame.go('teacher')}, t('class.teacher')),
    ];
  }
  function redraw() {
    // What is being typed stays.
    if (panel && !(panel.contains(document.activeElement) && document.activeElement.tagName === 'INPUT')) {
      panel.replaceChildren(...(joined() ? opened() : closed()).flat().filter(Boolean),
        h('div', {className: 'warn', role: 'status', innerHTML: wrong}));
    }
    for (const badge of frame.root.querySelectorAll('.class-badge')) badge.replaceChildren(...badged());
  }
  function badged() {
    if (!joined()) return [];
    const badge = h('span', {}, t('class.badge', {code: joined(), n: now?.members ?? 0}));
    if (!leads() || !page?.name) return [badge];
    return [badge, plain('class.show', () => lead({lesson: page.name, show: true}))];
  }

  // All guesses of the class, a line each, as a file.
  async function csv() {
    const lines = ['lesson,guess'];
    for (const {name} of frame.map.lessons) {
      const got = await ask('class_look', {lesson: name});
      for (const guess of got?.guesses ?? []) lines.push(`${name},${[guess].flat().join(' ')}`);
    }
    const url = URL.createObjectURL(new Blob([`${lines.join('\n')}\n`], {type: 'text/csv'}));
    h('a', {href: url, download: `class-${joined()}.csv`}).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  return {
    panel: () => {
      panel = can() ? h('section', {className: 'class-panel', 'aria-label': t('class.title')}) : null;
      redraw();
      return panel ?? '';
    },
    badge: () => h('span', {className: 'class-badge'}, badged()),
    guesses: name =>
      now && page?.name === name && (leads() || now.shown.includes(name)) ? now.guesses : undefined,
    send: (lesson, guess) => {
      if (can() && joined() && !leads()) ask('class_guess', {member: frame.visitor, lesson, guess});
    },
    look(name, shown) {
      page = shown;
      if (!name) redraw();
      if (leads() && name && now?.lesson !== name) lead({lesson: name});
      poll();
    },
  };
}
