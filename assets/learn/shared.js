// What the app's tab and the page by itself have in common.
import {digits} from './kit.js';
import {seedOf} from './seed.js';

// home: Learn's own address, which loads without the app.
export function shared(small, own) {
  function link(what) {
    const u = new URL(own.home);
    for (const [key, value] of Object.entries(what))
      if (value) u.searchParams.set(key, value);
    return u.href;
  }
  return {
    ...small,
    ...own,
    digits,
    lessonLink: (lesson, knobs = '') => link({lesson, lang: own.lang(), knobs, seed: seedOf(own.place())}),
    joinLink: code => link({class: code, seed: own.place().seed}),
    // Numbers of a lesson's sentences, rounded as people read them.
    said(facts) {
      const words = value => typeof value === 'number' ? digits(value) : value[own.lang()] ?? value;
      return Object.fromEntries(Object.entries(facts ?? {}).map(([key, value]) => [key, words(value)]));
    },
    // The address's parameters that set the live page as a try asks.
    linkOf({recipe = [], run, tab, family, x, y}) {
      const asked = {};
      recipe.forEach(([method, values], i) => {
        asked[i ? 'then' : 'method'] = method;
        for (const [name, value] of Object.entries(values)) asked[`${i ? 'then.' : ''}${name}`] = value;
      });
      Object.assign(asked, {run, tab, family, x, y});
      return Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== undefined));
    },
  };
}
