// The table of contents: the lessons, and the survey as a map of four families, eight groups and 22 systems.
export function contents(frame) {
  const {h, t, map, memory, digits} = frame;
  const state = name => memory[name]?.tried?.length ? 'tried' : memory[name]?.shown ? 'seen' : '';
  const lessons = h('ol', {className: 'lessons'},
    map.lessons.map(
      ({name, title, idea}) => h('li', {className: state(name)},
        h('button', {className: 'linklike', onclick: () => frame.go(name)}, title[frame.lang()]),
        h('span', {className: 'quiet'}, idea[frame.lang()]),
        h('span', {className: 'state'}, state(name) ? t(`state.${state(name)}`) : ''))));

  const leaf = system => h('li', {},
    h('details', {className: 'system'},
      h('summary', {}, h('b', {}, system.title), ' ', h('span', {className: 'quiet'}, String(system.year))),
      h('p', {}, h('a', {href: system.link, target: '_blank', rel: 'noopener'}, system.paper)),
      h('p', {}, result(system.best)),
      h('p', {className: 'acts'},
        system.lesson
          ? h('button', {className: 'linklike', onclick: () => frame.go(system.lesson)}, t('map.lesson'))
          : '',
        frame.openMethod(system.method, t('map.essay')),
        system.best ? frame.openRun(system.best, t('map.run')) : '')));
  const facts = best => ({
    what: best.words[frame.lang()],
    size: frame.sizeWords(best.file_bytes),
    perplexity: digits(best.perplexity),
    original: digits(map.original.perplexity),
  });
  const result = best => best ? t('map.best', facts(best)) : t('map.none');
  const family = f => h('section', {className: `family ${f.name}`},
    h('h3', {}, h('i', {className: `swatch ${f.name}`}), t(`family.${f.name}`)),
    f.groups.flatMap(g => [h('h4', {}, t(`group.${g.name}`)), h('ul', {}, g.systems.map(leaf))]));

  return {
    name: '',
    show() {},
    tally() {},
    close() {},
    parts: [
      h('h2', {tabIndex: -1}, t('title')),
      h('p', {className: 'lead'}, t('line')),
      frame.group.panel(),
      frame.ask
        ? ''
        : h('p', {},
            h('button', {className: 'linklike', onclick: () => frame.go('teacher')}, t('class.teacher'))),
      lessons,
      h('h3', {className: 'map-title'}, t('map.title')),
      h('p', {className: 'quiet'}, t('map.line', {n: map.systems})),
      h('div', {className: 'map'}, map.families.map(family)),
    ],
  };
}
