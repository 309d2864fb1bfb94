// The card of the chosen run.
(async () => {
  await ce.ready;
  let shown = '', spec = null, control = null, asked = 0;
  async function show(id) {
    const turn = ++asked;
    const got = await ce.ask(server.ask_card, {id});
    if (!got || turn !== asked) { if (!got) setTimeout(() => turn === asked && show(id), 2000); return; }
    const open = root.querySelector('details.all')?.open;
    shown = id;
    spec = got.spec;
    control = got.control;
    root.innerHTML = got.error || got.html;
    if (open && root.querySelector('details.all')) root.querySelector('details.all').open = true;
    root.dataset.run = id;
    ce.say('card', {id, ...got});
  }
  function problems() {
    root.replaceChildren(...ce.problems.map(([code, facts]) => h('div', {className: 'error calm', role: 'alert'},
      h('h3', {}, ce.t(`error.${code}.what`, facts)), h('p', {}, ce.t(`error.${code}.means`, facts)), h('p', {}, ce.t(`error.${code}.do`, facts)),
      h('button', {className: 'plain', onclick: () => { ce.problems = []; empty(); ce.say('results'); }}, ce.t('act.dismiss')))));
  }
  const empty = () => root.replaceChildren(h('p', {className: 'quiet'}, ce.t('card.none')));
  // what the buttons of cards do, wherever a card stands
  document.addEventListener('click', async e => {
    const b = e.target.closest?.('button[data-act]');
    if (!b) return;
    const id = b.dataset.id, act = b.dataset.act;
    if (act === 'dismiss') { b.closest('.error')?.remove(); if (!root.childElementCount) empty(); }
    if (act === 'offline') { ce.state.model = ce.data.offline; ce.write(); ce.say('choices'); ce.say('model'); b.closest('.error')?.remove(); }
    if (act === 'builtin') { Object.assign(ce.state.settings, {text: 'builtin', calibration: 'builtin', protocol: 'raw'}); ce.write(); ce.say('choices'); b.closest('.error')?.remove(); }
    if (act === 'chat') { ce.state.run = id; ce.setTab('chat'); }
    if (['use', 'again', 'make', 'retry'].includes(act)) {
      const known = id === shown ? spec : id ? (await ce.ask(server.ask_card, {id}))?.spec : null;
      if (known) { const model = ce.state.model; ce.use(known); if (model !== ce.state.model) ce.say('model'); }
      if (act !== 'use') { b.closest('.error')?.remove(); ce.say('run', {again: act === 'again' || act === 'make', chat: act === 'make'}); }
      else document.querySelector('#controls')?.scrollIntoView({block: 'nearest'});
    }
    if (act === 'control') {
      const known = id === shown ? control : null;
      if (known) { ce.use(known); ce.say('run', {}); }
    }
    if (act === 'link') {
      const u = new URL(location);
      u.searchParams.set('run', id);
      try { await navigator.clipboard.writeText(u.href); } catch (error) { prompt(ce.t('card.link'), u.href); }
      said(b, ce.t('card.copied'));
    }
    if (act === 'download') {
      said(b, ce.t('card.preparing'));
      const got = await ce.ask(server.ask_pack, {id, form: b.dataset.form ?? ''});
      if (got?.file) h('a', {href: `gradio_api/file=${got.file}`, download: got.name}).click();
      else if (got?.error) root.insertAdjacentHTML('beforeend', got.error);
    }
  });
  function said(button, text) {
    const was = button.textContent;
    button.textContent = text;
    setTimeout(() => { button.textContent = was; }, 1600);
  }
  ce.on('select', ({id, from}) => { show(id); if (from === 'table' && innerWidth < 700) root.scrollIntoView({behavior: 'smooth'}); });
  ce.on('preselect', ({id}) => { if (!ce.state.run) show(id); });
  ce.on('lang', () => shown ? show(shown) : ce.problems.length ? problems() : empty());
  ce.on('model', () => { if (!ce.state.run) { shown = ''; empty(); } });
  if (ce.problems.length) problems(); else if (ce.state.run) show(ce.state.run); else empty();
})();
