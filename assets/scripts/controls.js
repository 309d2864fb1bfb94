// The left column: the knobs, what a run will cost, the one button, and the run on its way.
const go = h('button', {className: 'primary go', type: 'button', onclick: () => start()});
const four = h('button', {className: 'linklike four', type: 'button', onclick: runFour});

// The button says what will happen. While the knob moves it may be pressed before the estimate is there.
function drawButton(moving = false) {
  const {steps, settings} = ce.state, running = Boolean(following), {stored, error, fits} = weighed;
  const original = steps.every(s => ce.method(s.method).family === 'original') && settings.cache_bits === 16;
  go.textContent = t(stored ? 'controls.show' : original ? 'controls.measure' : 'controls.run');
  go.disabled = running || beginning || (!moving && (Boolean(error) || (!fits && !stored)));
  go.hidden = running;
  four.hidden = running || !mainOf(lastStep());
  root.classList.toggle('running', running);
}

// After a choice that changes what can be chosen.
function changed() {
  ce.write();
  draw();
  weigh();
}

function draw() {
  drawKnobs();
  drawButton();
  four.textContent = t('controls.four');
  stop.textContent = t('controls.stop');
  enough.textContent = t('progress.enough');
  bar.setAttribute('aria-label', t('progress.label'));
}

document.addEventListener('keydown', e => {
  const typing = /^(SELECT|TEXTAREA)$/.test(e.target.tagName) || e.target.type === 'text';
  if (e.key === 'Escape' && following && !typing) end();
});
ce.ready.then(() => {
  root.replaceChildren(
    form, h('div', {className: 'runbar'}, estimate, go, progress, trouble, say), four, reader);
  ce.on('lang', () => {
    draw();
    weigh();
    if (following) tick(following);
  });
  ce.on('families', tellBest);
  ce.on('choices', () => {
    draw();
    weigh();
  });
  ce.on('run', async options => {
    if (await weigh()) start(options);
  });
  draw();
  weigh();
  findAgain();
});
