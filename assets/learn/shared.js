// What the app's tab and the page by itself have in common.
import {digits} from './kit.js';

export function shared(small, own) {
  return {
    ...small, ...own, digits,
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
