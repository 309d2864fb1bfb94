// Suggested questions, and what a visitor without the model sees and can do.

// A suggested question: a model that is here is asked, else its recorded answer is shown.
function suggested({name, text}) {
  prompt = name;
  if (live()) start(text);
  load().then(() => {
    if (!live()) ce.say('answered');
  });
}

function drawSuggestions() {
  const chip = one => h('button', {
    className: 'chip',
    type: 'button',
    disabled: busy,
    title: one.text,
    'data-prompt': one.name,
    'aria-pressed': live() ? null : String(one.name === prompt),
    textContent: one.label,
    onclick: () => suggested(one),
  });
  suggest.replaceChildren(h('span', {className: 'quiet'}, t('chat.suggest')), ...replay.prompts.map(chip));
}

// What a visitor without the model can do to ask a question of one's own.
function drawOwn() {
  own.hidden = live();
  form.hidden = options.hidden = !live();
  about.textContent = live() ? '' : replay.about;
  const other = !live() && ce.state.run && replay.id !== ce.state.run;
  instead.hidden = !other;
  instead.textContent = other ? t('chat.instead', {name: replay.right.title}) : '';
  if (live()) return;
  const act = {'data-act': 'make', 'data-id': replay.id, onclick: () => ce.setTab('explore')};
  own.replaceChildren(
    h('span', {}, t('chat.own')), h('button', {className: 'plain', type: 'button', ...act}, replay.make));
}

function drawLadder() {
  ladder.hidden = !replay.ladder?.length;
  if (ladder.hidden) return;
  const step = one => {
    const text = h('div', {className: 'text', dir: 'auto'});
    drawText(text, one.side, one.parted);
    const sizes = [one.size, one.grade].filter(Boolean).join(' · ');
    return h('li', {className: 'step'}, h('h4', {}, one.title), h('p', {className: 'quiet'}, sizes), text);
  };
  ladder.replaceChildren(h('h3', {}, t('chat.ladder')),
    h('p', {className: 'quiet'}, t('chat.ladder.help', {question: replay.asked})),
    h('ul', {className: 'steps'}, replay.ladder.map(step)));
}
