// What a seed draws in a lesson: the same for all who open the same link or sit in the same class, something
// else under another seed. Without a seed each lesson shows what it shows first. A draw has a name, so that
// it doesn't depend on the draws before it.

// The seed of a place: the address's own, or the class's code.
export const seedOf = ({seed, code}) => seed || code || '';

// FNV-1a: 32 bits of a text's UTF-16 units.
export function hash(text) {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return h >>> 0;
}

// Mulberry32: numbers in [0, 1) from 32 bits.
export function numbers(state) {
  return () => {
    state = state + 0x6d2b79f5 | 0;
    let z = Math.imul(state ^ state >>> 15, state | 1);
    z = z + Math.imul(z ^ z >>> 7, z | 61) ^ z;
    return ((z ^ z >>> 14) >>> 0) / 2 ** 32;
  };
}

export function drawing(seed, lesson) {
  const stream = name => numbers(hash(`${seed} ${lesson} ${name}`));
  // One of a list; `usual` without a seed.
  const one = (name, list, usual = list[0]) => seed ? list[Math.floor(stream(name)() * list.length)] : usual;
  // The list in another order (Fisher and Yates), as it is without a seed.
  function shuffled(name, list) {
    const out = [...list], next = stream(name);
    if (seed)
      for (let i = out.length - 1; i > 0; i--) {
        const j = Math.floor(next() * (i + 1));
        [out[i], out[j]] = [out[j], out[i]];
      }
    return out;
  }
  // A lesson's data with one of its draws in place (evaluation/learning/lesson.py, drawn).
  function shown({draws = [], ...data}) {
    const own = one('draws', [{}, ...draws]);
    return {...data, ...own, facts: {...data.facts, ...own.facts}};
  }
  return {one, shuffled, shown};
}
