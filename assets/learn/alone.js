// Learn by itself: a page that any web server can give out. Beside the app it finds the app's server, for
// classes.
/* global h, s, fill, kept, keep, sizeWords */
import {mount} from './frame.js';
import {shared} from './shared.js';

const settings =
  await (await fetch('site.json')).json();  // {app: address of the live page or "", server: bool}
const query = new URLSearchParams(location.search), bus = new EventTarget();
let lang = query.get('lang') ?? kept('ce-lang') ?? (/^zh/i.test(navigator.language) ? 'zh-Hant' : 'en');
if (!['en', 'zh-Hant'].includes(lang)) lang = 'en';
const dark = matchMedia('(prefers-color-scheme: dark)');

function setPlace(what) {
  const u = new URL(location);
  for (const [key, value] of Object.entries(what)) {
    if (value) u.searchParams.set(key, value);
    else u.searchParams.delete(key);
  }
  history.pushState(null, '', u);
}
const say = name => bus.dispatchEvent(new Event(name));
const appLink = params => {
  const u = new URL(settings.app || '../', location);
  u.search = new URLSearchParams(params).toString();
  return u.href;
};

// Beside a live page a link opens it with its knobs set; in a folder of its own it shows the command.
const away = (params, words, command) => settings.app || settings.server
  ? h('a', {className: 'away', href: appLink({...params, lang}), target: '_blank', rel: 'noopener'}, words)
  : h('span', {}, words, command ? [' ', h('code', {}, command)] : '');

const host = shared({h, s, fill, kept, keep, sizeWords}, {
  base: './',
  home: new URL('.', location),
  lang: () => lang,
  visitor: token(),
  on: (name, f) => bus.addEventListener(name, f),
  place: () => {
    const q = new URLSearchParams(location.search);
    return {
      lesson: q.get('lesson') ?? '',
      code: (q.get('class') ?? '').slice(0, 12),
      knobs: q.get('knobs') ?? '',
      seed: (q.get('seed') ?? '').slice(0, 40)
    };
  },
  setPlace: ({code, ...rest}) => setPlace({...rest, ...code === undefined ? {} : {class: code}}),
  ask: settings.server ? ask : null,
  tryButton: (one, words, done) => h('span', {onclick: done}, away(host.linkOf(one), words, one.command)),
  openMethod: (method, words) => away({method}, words),
  openRun: (best, words) => away({run: best.id}, words),
});

async function ask(question, what) {
  try {
    const answer = await fetch('ask', {
      method: 'POST',
      headers: {'content-type': 'application/json'},
      body: JSON.stringify({question, ask: {lang, ...what}}),
    });
    return await answer.json();
  } catch { return null; }
}
function token() {
  const known = kept('ce-visitor'), bytes = [...crypto.getRandomValues(new Uint8Array(16))];
  const fresh = known ?? bytes.map(b => b.toString(16).padStart(2, '0')).join('');
  keep('ce-visitor', fresh);
  return fresh;
}

function bar(t) {
  document.documentElement.lang = lang;
  document.body.classList.toggle('dark', dark.matches || document.body.classList.contains('projector'));
  document.querySelector('.home').replaceChildren(t('home'));
  document.querySelector('.home').href = settings.app || (settings.server ? '../' : '.');
  const projector = document.querySelector('.projector');
  projector.textContent = t('projector');
  projector.setAttribute('aria-pressed', String(document.body.classList.contains('projector')));
  const language = ([own, name]) => h('button', {
    lang: own,
    className: 'lang',
    'aria-pressed': String(own === lang),
    textContent: name,
    onclick: () => {
      lang = own;
      keep('ce-lang', own);
      say('lang');
      bar(frame.t);
    },
  });
  document.querySelector('.languages').replaceChildren(...[['en', 'EN'], ['zh-Hant', '繁中']].map(language));
}
const frame = await mount(document.querySelector('#learn .panel'), host);
document.querySelector('.projector').onclick = () => {
  document.body.classList.toggle('projector');
  bar(frame.t);
};
if (query.get('projector') === 'yes') document.body.classList.add('projector');
addEventListener('popstate', () => say('place'));
dark.addEventListener('change', () => bar(frame.t));
bar(frame.t);
