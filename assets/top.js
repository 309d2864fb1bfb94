// Header: name, sentence, machine, language, the two views.
ce.start(props.value);
let sentence = '';
function draw() {
  const {data, t} = ce;
  const tabs = ['explore', ...(data.chat ? ['chat'] : [])].map(name =>
    h('button', {role: 'tab', id: `tab-${name}`, className: 'tab', 'aria-selected': String(ce.tab === name), tabIndex: ce.tab === name ? 0 : -1, onclick: () => ce.setTab(name)}, t(`app.tab.${name}`)));
  const bar = h('div', {role: 'tablist', className: 'tabs', 'aria-label': t('app.tabs')}, tabs);
  bar.addEventListener('keydown', e => {
    if (e.key !== 'ArrowRight' && e.key !== 'ArrowLeft') return;
    ce.setTab(ce.tab === 'chat' || !data.chat ? 'explore' : 'chat');
    root.querySelector('[aria-selected=true]').focus();
  });
  const languages = h('div', {className: 'languages', role: 'group', 'aria-label': t('app.language')},
    [['en', 'EN'], ['zh-Hant', '繁中']].map(([id, name]) => h('button', {lang: id, className: 'lang', 'aria-pressed': String(ce.lang === id), onclick: () => ce.setLang(id)}, name)));
  root.replaceChildren(
    h('header', {className: 'bar'},
      h('h1', {}, t('app.name')), bar,
      h('span', {className: 'machine', title: t('app.machine.title', {processor: data.processor})}, t('app.machine.cpu', {n: data.threads})), languages),
    h('p', {className: 'headline', id: 'headline'}, sentence || t('app.sentence')),
    h('p', {className: 'lost', role: 'status'}, t('app.lost')),
    data.read_only ? h('p', {className: 'warn'}, t('app.read_only')) : '');
  document.title = t('app.name');
}
draw();
ce.on('lang', () => { sentence = ''; draw(); });
ce.on('tab', draw);
ce.on('headline', text => { sentence = text; root.querySelector('#headline').textContent = text; });
document.addEventListener('mouseover', e => place(e.target.closest?.('.term')));
document.addEventListener('focusin', e => place(e.target.closest?.('.term')));
// keep an explanation inside the window
function place(term) {
  if (term) term.classList.toggle('left', term.getBoundingClientRect().left > innerWidth - 270);
}
