// What the app's tab and the page by itself have in common.
import {digits} from './kit.js';
import {seedOf} from './seed.js';

// home: Learn's own address, which loads without the app.
export function shared(small, own) {
  function link(what) {
    const u = new URL(own.home);
    for (const [key, value] of Object.entries(what)) if (value) u.searchParams.set(key, value);
    return u.href;
  }
  return {
    ...small, ...own, digits,
    lessonLink: (lesson, knobs = '') => link({lesson, lang: own.lang(), knobs, seed: seedOf(own.place())}),
    joinLink: code => link({class: code, seed: own.place().seed}),
    // Numbers of a lesson's sentences, rounded as people read them.
    said: facts => Object.fromEntries(Object.entries(facts ?? {}).map(([key, value]) =>
      [key, typeof value === 'number' ? digits(value) : value[own.lang()] ?? value])),
    // The address's parameters that set the live page as a try asks.
    linkOf: ({recipe = [], run, tab, family, x, y}) => Object.fromEntries(Object.entries({
      ...Object.fromEntries(recipe.flatMap(([method, values], i) => [[i ? 'then' : 'method', method],
        ...Object.entries(values).map(([name, value]) => [`${i ? 'then.' : ''}${name}`, value])])),
      run, tab, family, x, y,
    }).filter(([, value]) => value !== undefined)),
  };
}
