// Header: name, sentence, machine, language, tabs.
let said = {headline: '', scale: ''};

function draw() {
  const {data} = ce;
  const machine =
    h('span', {className: 'machine', title: t('app.machine.title', {processor: data.processor})},
      ce.many('app.machine.cpu', data.threads));
  root.replaceChildren(
    h('header', {className: 'bar'}, h('h1', {}, t('app.name')), tabs(), machine, languages()),
    h('p', {className: 'purpose'}, t('app.sentence')),
    h('h2', {className: 'headline', id: 'headline'}, said.headline), h('p', {className: 'scale'}, said.scale),
    h('p', {className: 'lost', role: 'status'}, t('app.lost')),
    data.read_only ? h('p', {className: 'warn'}, t('app.read_only')) : '');
  document.title = t('app.name');
}

function tabs() {
  const tab = name => h('button', {
    role: 'tab',
    id: `tab-${name}`,
    className: 'tab',
    'aria-selected': String(ce.tab === name),
    tabIndex: ce.tab === name ? 0 : -1,
    textContent: t(`app.tab.${name}`),
    onclick: () => ce.setTab(name),
  });
  const onkeydown = e => {
    const next = tabAt(ce.data.tabs, ce.tab, e.key);
    if (next === null) return;
    e.preventDefault();
    ce.setTab(next);
    root.querySelector('[aria-selected=true]').focus();
  };
  return h('div', {role: 'tablist', className: 'tabs', 'aria-label': t('app.tabs'), onkeydown},
    ce.data.tabs.map(tab));
}

function languages() {
  const language = (lang, name) => h('button', {
    lang,
    className: 'lang',
    'aria-pressed': String(ce.lang === lang),
    textContent: name,
    onclick: () => ce.setLang(lang),
  });
  return h('div', {className: 'languages', role: 'group', 'aria-label': t('app.language')},
    language('en', 'EN'), language('zh-Hant', '繁中'));
}

// An explanation stays inside the window.
function turn(term) { term?.classList.toggle('left', term.getBoundingClientRect().left > innerWidth - 270); }

ce.start(props.value);
draw();
ce.on('lang', draw);
ce.on('tab', draw);
ce.on('headline', front => {
  said = front;
  root.querySelector('#headline').textContent = said.headline;
  root.querySelector('.scale').replaceChildren(said.scale);
});
for (const event of ['mouseover', 'focusin']) {
  document.addEventListener(event, e => turn(e.target.closest?.('.term')));
}
