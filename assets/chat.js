// Both models answer the same question. One event streams both columns; model text enters the page as text only.
(async () => {
  await ce.ready;
  let heads = null, state = null, busy = false, question = '', turn = 0, temperature = 0, length = 96;
  const {t} = ce;
  try { const last = JSON.parse(localStorage.getItem('ce-chat')); if (last) { state = last.state; question = last.question; } } catch (e) {}
  const say = h('p', {className: 'chat-status', role: 'status'});
  const columns = {original: column(), compressed: column()};
  const box = h('textarea', {id: 'prompt', rows: 2, maxLength: 4000});
  const send = h('button', {className: 'primary', type: 'submit'}), stop = h('button', {className: 'plain', type: 'button', hidden: true, onclick: end});
  const suggest = h('div', {className: 'suggest'}), options = h('div', {className: 'chat-options'}), choice = h('div', {className: 'choice'});
  const asked = h('p', {className: 'asked'}), trouble = h('div', {className: 'trouble'});
  const form = h('form', {className: 'ask', onsubmit: e => { e.preventDefault(); start(box.value.trim()); }}, box, h('div', {className: 'row'}, send, stop));
  box.addEventListener('keydown', e => { if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) { e.preventDefault(); start(box.value.trim()); } });
  const none = h('div', {className: 'none', hidden: true}), talk = h('div', {className: 'talk', hidden: true}, asked, h('div', {className: 'columns'}, columns.original.root, columns.compressed.root), say, trouble, suggest, form, options);
  root.replaceChildren(choice, none, talk);

  function column() {
    const c = {title: h('h3'), text: h('div', {className: 'text', dir: 'auto'}), live: h('p', {className: 'live'}), bars: h('div', {className: 'bars'})};
    c.root = h('div', {className: 'column'}, c.title, c.text, c.live, c.bars);
    return c;
  }
  async function load() {
    const got = await ce.ask(server.ask_sides, {id: ce.state.run});
    if (!got) return setTimeout(load, 2000);
    heads = got;
    if (got.error) { none.hidden = false; none.innerHTML = got.error; return; }
    if (!got.right && got.options.length && !got.options.some(o => o[0] === ce.state.run)) { ce.state.run = got.options[0][0]; ce.write(); return load(); }
    draw();
  }
  function draw() {
    if (!heads) return;
    const ready = Boolean(heads.right);
    none.hidden = ready;
    talk.hidden = !ready;
    none.replaceChildren(h('p', {}, t('chat.none')), h('button', {className: 'primary', onclick: () => ce.setTab('explore')}, t('chat.none_button')));
    choice.replaceChildren(h('h2', {}, t('chat.title')), ...(heads.options.length ? [h('label', {}, t('chat.choose'), h('select', {id: 'side', onchange: e => { state = null; question = ''; ce.select(e.target.value, 'chat'); }},
      heads.options.map(([id, name]) => h('option', {value: id, selected: id === ce.state.run}, name))))] : []));
    if (!ready) return;
    columns.original.title.replaceChildren(heads.left.title, heads.rounded ? h('small', {}, heads.rounded) : '');
    columns.compressed.title.textContent = heads.right.title;
    box.placeholder = t('chat.placeholder');
    box.setAttribute('aria-label', t('chat.prompt'));
    send.textContent = t('chat.send');
    stop.textContent = t('chat.stop');
    const tries = [1, 2, 3, 4, 5].map(i => t(`chat.try.${i}`));
    suggest.replaceChildren(h('span', {className: 'quiet'}, t('chat.suggest')), ...tries.map(p => h('button', {className: 'chip', type: 'button', disabled: busy, onclick: () => start(p)}, p)));
    options.replaceChildren(
      h('label', {}, t('chat.tokens'), h('input', {type: 'number', min: 8, max: 512, step: 8, value: length, onchange: e => { length = Math.min(512, Math.max(8, Number(e.target.value) || 96)); }})),
      h('label', {}, ce.tip(t('chat.temperature'), t('chat.temperature.help')), h('input', {type: 'number', min: 0, max: 2, step: 0.1, value: temperature, onchange: e => { temperature = Math.min(2, Math.max(0, Number(e.target.value) || 0)); }})),
      heads.chats ? '' : h('span', {className: 'quiet'}, t('chat.continues')), heads.busy ? h('span', {className: 'quiet'}, t('chat.busy')) : '');
    show();
  }
  function show() {
    asked.textContent = question;
    asked.hidden = !question;
    for (const [side, c] of Object.entries(columns)) {
      const now = state?.sides?.[side], head = side === 'original' ? heads?.left : heads?.right;
      text(c.text, now, state?.parted);
      c.text.classList.toggle('writing', busy && !now?.done);
      c.live.textContent = now ? [now.rate, now.first, now.cache, busy && now.rate ? t('chat.live') : ''].filter(Boolean).join(' · ') : '';
      bars(c.bars, side, head, now);
    }
    send.disabled = busy;
    stop.hidden = !busy;
    say.textContent = state?.status ?? '';
    trouble.innerHTML = state?.error ?? '';
  }
  // the answer, with a mark from the token on at which the two part
  function text(place, now, parted) {
    if (!now) return place.replaceChildren();
    const cut = parted === null || parted === undefined || now.pieces <= parted ? -1 : parted === 0 ? 0 : now.ends?.[parted - 1] ?? -1;
    if (cut < 0) return place.replaceChildren(now.text);
    place.replaceChildren(now.text.slice(0, cut), h('mark', {title: t('chat.mark')}, now.text.slice(cut, now.ends?.[parted] ?? cut + 1) || '\u200b'), now.text.slice(now.ends?.[parted] ?? cut + 1));
  }
  function bars(place, side, head, now) {
    if (!head) return;
    const other = side === 'original' ? heads.right : heads.left;
    const mine = state?.sides?.[side], theirs = state?.sides?.[side === 'original' ? 'compressed' : 'original'];
    const row = (name, x, y, words) => x ? h('div', {className: 'bar-row'}, h('span', {}, name), h('i', {className: 'track'}, h('i', {className: 'fill', style: `width:${Math.round(100 * x / Math.max(x, y || 0))}%`})), h('span', {className: 'figure'}, words)) : '';
    place.replaceChildren(
      row(t('chat.bar.rate'), head.rate ?? mine?.rate_value, other?.rate ?? theirs?.rate_value, head.rate ? head.stored : mine?.rate ?? ''),
      row(t('chat.bar.memory'), head.memory ?? mine?.memory_value, other?.memory ?? theirs?.memory_value, head.memory ? head.memory_words : mine?.memory ?? ''));
  }
  function start(words) {
    if (!words || busy || !heads?.right) return;
    question = words;
    box.value = '';
    busy = true;
    turn += 1;
    state = null;
    draw();
    say.textContent = t('chat.waiting');
    trigger('ask', {lang: ce.lang, visitor: ce.visitor, id: ce.state.run, turn, messages: [{role: 'user', content: words}], max_tokens: length, temperature, seed: 0});
  }
  async function end() {
    stop.disabled = true;
    await ce.ask(server.ask_stop_chat, {visitor: ce.visitor});
    stop.disabled = false;
  }
  watch('value', () => {
    if (!props.value?.sides || props.value.turn !== turn) return;
    state = props.value;
    if (state.done) {
      busy = false;
      try { localStorage.setItem('ce-chat', JSON.stringify({state, question})); } catch (e) {}
      draw();
    } else show();
  });
  document.addEventListener('keydown', e => { if (e.key === 'Escape' && busy && ce.tab === 'chat') end(); });
  ce.on('lang', load);
  ce.on('tab', tab => { if (tab === 'chat') load(); });
  ce.on('select', () => { if (ce.tab === 'chat') load(); });
  if (ce.tab === 'chat') load();
})();
