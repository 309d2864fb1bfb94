// The smallest run that fits into a size, which a visitor may type.
const answer = h('div', {className: 'answer'});

function tell(html) {
  answer.innerHTML = html;
  answer.prepend(h('h3', {}, t('front.which')));
}

// The size that is asked about: at once when it is left, and while it is typed the answer alone.
const megabytes = text => Math.max(1, Number(text) || 1) * 1e6;
const answering = newest(() => ask());
async function refreshAnswer() {
  const got = await answering();
  if (!got || got.error) return;
  const box = answer.querySelector('input'), held = document.activeElement === box, text = box?.value;
  tell(got.answer);
  const fresh = answer.querySelector('input');
  if (held && fresh) {
    fresh.value = text;
    fresh.focus();
  }
}
let typing = 0;
answer.addEventListener('input', e => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    ce.state.budget = megabytes(e.target.value);
    refreshAnswer();
  }, 250);
});
answer.addEventListener('change', e => {
  ce.state.budget = megabytes(e.target.value);
  load();
});
