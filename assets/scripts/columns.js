// The two answers of the chat, side by side. A model's text enters the page as text only.
const SIDES = ['original', 'compressed'];
const columns = Object.fromEntries(SIDES.map(side => [side, column()]));
const sideBySide = h('div', {className: 'columns'}, SIDES.map(side => columns[side].root));

function column() {
  const title = h('h3'), text = h('div', {className: 'text', dir: 'auto'});
  const live = h('p', {className: 'live'}), bars = h('div', {className: 'bars'});
  return {title, text, live, bars, root: h('div', {className: 'column'}, title, text, live, bars)};
}

// An answer in three pieces: before the token at which the two part, that token, and the rest. `ends` has
// where each token ends. Null for an answer that hasn't come so far.
function parted({text, ends = [], pieces}, at) {
  const begin = at === 0 ? 0 : ends[at - 1];
  if (at === null || at === undefined || pieces <= at || begin === undefined) return null;
  const end = ends[at] ?? begin + 1;
  return [text.slice(0, begin), text.slice(begin, end), text.slice(end)];
}

// A bar's length in per cent of the longer of the two.
const share = (own, other) => Math.round(100 * own / Math.max(own, other || 0));

// `heads`: what each side is, and what was measured of it. `state`: the answers so far.
function drawColumns(heads, state, busy) {
  for (const [i, side] of SIDES.entries()) {
    const now = state?.sides?.[side], c = columns[side];
    drawText(c.text, now, state?.parted);
    c.text.classList.toggle('writing', busy && !now?.done);
    const told = now
      ? [now.rate, now.busy, now.first, now.memory, now.cache, busy && now.rate ? t('chat.live') : '']
      : [];
    c.live.textContent = told.filter(Boolean).join(' · ');
    const [own, other] = i ? [heads.right, heads.left] : [heads.left, heads.right];
    if (own) drawBars(c.bars, own, other, now, state?.sides?.[SIDES[1 - i]]);
  }
}

// An answer that was cut at its length ends with three dots.
function drawText(box, now, at) {
  const pieces = now && parted(now, at);
  const cut = now?.cut ? h('span', {className: 'quiet', title: t('chat.cut')}, ' …') : '';
  if (!pieces) return box.replaceChildren(now?.text ?? '', cut);
  const [before, mark, rest] = pieces;
  box.replaceChildren(before, h('mark', {title: t('chat.mark')}, mark || '\u200b'), rest, cut);
}

// What was measured alone counts; the live rate stands in where nothing was. Sizes are those of the files.
function drawBars(box, own, other, mine, theirs) {
  const bar = (name, x, y, words) => x
    ? h('div', {className: 'bar-row'}, h('span', {}, name),
        h('i', {className: 'track'}, h('i', {className: 'fill', style: `width:${share(x, y)}%`})),
        h('span', {className: 'figure'}, words))
    : '';
  box.replaceChildren(bar(t('chat.bar.size'), own.size, other?.size, own.size_words),
    bar(t('chat.bar.rate'), own.rate ?? mine?.rate_value, other?.rate ?? theirs?.rate_value,
      own.rate ? own.stored : mine?.rate ?? ''));
}
