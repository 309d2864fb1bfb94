// For teachers: what to ask in which order and what goes wrong; and the worksheet, which prints on paper.
export const VIEWS = {
  teacher,
  worksheet
};

const all = frame =>
  Promise.all(frame.map.lessons.map(async ({name}) => ({name, ...await frame.load(name)})));
const teller = (frame, {own, data}) => key => frame.fill(own[key] ?? '', frame.said(data.facts));

const head = (frame, title,
  line) => [frame.h('nav', {className: 'lesson-nav', 'aria-label': frame.t('lessons')},
              frame.h('button', {className: 'linklike', onclick: () => frame.go('')}, frame.t('contents')),
              frame.h('button', {className: 'plain print', onclick: () => print()}, frame.t('print'))),
  frame.h('h2', {tabIndex: -1}, title), frame.h('p', {className: 'lead'}, line)];

// What was measured, in words: a number with its error, the right option, the right order.
export function measured(frame, {data, own}) {
  const {kind, answer, error, options, items, unit} = data.question, facts = frame.said(data.facts);
  const name = key => frame.fill(own[`option.${key}`] ?? key, facts);
  if (kind === 'pick') return name(options[answer]);
  if (kind === 'order') return answer.map(i => name(items[i])).join(' → ');
  const value = unit ? frame.fill(own[`unit.${unit}`], {n: frame.digits(answer)}) : frame.digits(answer);
  return error ? `${value} ± ${frame.digits(error, 2)}` : value;
}

// What varies with a seed, and a field for it; every link of the page carries it.
function seeding(frame) {
  const {h, t} = frame,
            field = h('input', {type: 'text', id: 'seed-field', maxLength: 40, value: frame.place().seed});
  const set = seed => {
    frame.setPlace({seed});
    return frame.go('teacher');
  };
  return h('form', {
    className: 'seeding',
    onsubmit: e => {
      e.preventDefault();
      set(field.value.trim());
    }
  },
    h('p', {}, t('teacher.seed_how')), h('label', {htmlFor: 'seed-field'}, t('teacher.seed')), field,
    h('button', {className: 'plain'}, t('teacher.seed_set')),
    h('button',
      {type: 'button', className: 'plain', onclick: () => set(String(Math.floor(Math.random() * 1e4)))},
      t('teacher.seed_new')));
}

async function teacher(frame) {
  const {h, t} = frame, lessons = await all(frame);
  const one = (lesson, i) => {
    const tell = teller(frame, lesson);
    return h('section', {className: 'teach'},
      h('h3', {}, `${i + 1}. `,
        h('button', {className: 'linklike', onclick: () => frame.go(lesson.name)}, tell('title'))),
      h('p', {}, tell('idea')),
      lesson.data.question ? h('p', {}, h('b', {}, t('teacher.ask')), ' ', tell('question')) : '',
      lesson.data.question ? h('p', {}, h('b', {}, t('teacher.measured')), ' ', measured(frame, lesson)) : '',
      h('p', {}, h('b', {}, t('teacher.why')), ' ', tell('why')),
      tell('teach') ? h('p', {}, h('b', {}, t('teacher.wrong')), ' ', tell('teach')) : '',
      h('p', {}, h('a', {href: frame.lessonLink(lesson.name)}, t('teacher.link'))));
  };
  return {
    name: '',
    show() {},
    tally() {},
    close() {},
    parts: [
      ...head(frame, t('teacher.title'), t('teacher.line')),
      h('ol', {className: 'how'},
        ['open', 'ask', 'show', 'network'].map(step => h('li', {}, t(`teacher.${step}_how`)))),
      h('p', {},
        h('button', {className: 'linklike', onclick: () => frame.go('worksheet')}, t('worksheet.title'))),
      seeding(frame), ...lessons.map(one)
    ]
  };
}

async function worksheet(frame) {
  const {h, t} = frame, lessons = await all(frame);
  const blank = words => h('p', {className: 'blank'}, h('span', {}, words));
  return {
    name: '',
    show() {},
    tally() {},
    close() {},
    parts: [
      ...head(frame, t('worksheet.title'), t('worksheet.line')), blank(t('worksheet.name')),
      ...lessons.filter(({data}) => data.question).map((lesson, i) => {
        const tell = teller(frame, lesson), {options, items} = lesson.data.question, boxes = options ?? items;
        return h('section', {className: 'sheet'}, h('h3', {}, `${i + 1}. ${tell('title')}`),
          h('p', {}, tell('question')),
          boxes && h('ul', {}, boxes.map(o => h('li', {}, `☐ ${tell(`option.${o}`)}`))),
          blank(t('worksheet.mine')), blank(t('worksheet.measured')), blank(t('worksheet.because')));
      })
    ]
  };
}
