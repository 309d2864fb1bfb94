// The question of a lesson: the learner answers first, then sees what was measured. `data.question`:
//   {kind: 'number', lo, hi, log, start, unit, answer, error}        a place on a scale; counted: a sum, no
//   measurement {kind: 'pick', options, answer}                                  one of a few; options: names
//   of words `option.<name>` {kind: 'order', items, answer, values}                           items in an
//   order {kind: 'figure', answer, best}                                   the figure itself is the answer
//   (lesson.guess()) {kind: 'figure', of}                                             the figure counts right
//   answers, of so many
import {digits, scale, ticks} from './kit.js';

const KINDS = {
  number,
  pick,
  order,
  figure
};

export function questionOf(frame, of) {
  const {h, t} = frame, {tell, data, onguess, onshow} = of, {question} = data;
  const answer = h('div', {className: 'question-answer', 'aria-live': 'polite'});
  const kind = KINDS[question.kind](frame, {...of, question, answer});
  const button = h('button', {
    type: 'button',
    className: 'primary',
    textContent: t('show'),
    onclick: () => {
      const guess = kind.guess();
      if (guess === null) {
        answer.textContent = t('answer_first');
        return;
      }
      onguess(guess);
      onshow();
    }
  });
  const tally = h('div', {className: 'tally'});
  return {
    root: h('section', {className: 'question'}, h('h3', {}, t('question')), h('p', {}, tell('question')),
      kind.root, button, answer, tally),
    restore: guess => kind.restore?.(guess),
    reveal(guess, others) {
      button.hidden = true;
      kind.lock?.();
      answer.replaceChildren(...[kind.reveal(guess ?? null, others)].flat().filter(Boolean));
    },
    // What a class has answered so far, before or after the reveal.
    tally: others =>
      tally.replaceChildren(...others?.length ? [kind.tally(others)].flat().filter(Boolean) : []),
  };
}

// A value with its unit, which the lesson's words `unit.<name>` tell around {n}: "{n} MB".
const words = ({unit}, value, tell) => unit ? tell(`unit.${unit}`, {n: digits(value)}) : digits(value);

function number(frame, {question, tell, kit, data}) {
  const {h, s, t} = frame, {lo, hi, log, answer, error} = question;
  let guess = null;
  const slider = kit.slider({
    asked: true,
    label: t('guess'),
    lo,
    hi,
    step: question.step ?? (hi - lo) / 200,
    log,
    value: question.start ?? lo,
    format: v => words(question, v, tell),
    oninput: v => { guess = v; },
  });
  const how = error ? 'measured_error' : question.counted ? 'counted' : 'measured';
  // All on one scale: the guess, what was measured with its error, and what others guessed.
  function strip(own, others = [], shown = true) {
    const width = Math.max(260, Math.min(frame.root.clientWidth - 4, 640)),
          at = scale(lo, hi, 14, width - 14, log);
    const inside = v => Math.min(Math.max(at(Math.max(v, log ? lo : v)), 8), width - 8);
    const svg = s('svg', {class: 'lesson-svg strip', width, height: 78, 'aria-hidden': 'true'},
      s('path', {class: 'axis', d: `M14 52H${width - 14}`}),
      ticks(lo, hi, 5, log).map(v => s('text', {x: at(v), y: 70, 'text-anchor': 'middle'}, digits(v))),
      others.map((v, i) => s('circle', {class: 'other', cx: inside(v), cy: 44 - 5 * (i % 4), r: 3.5})),
      shown && error
        ? s('path', {class: 'error', d: `M${inside(answer - error)} 52H${inside(answer + error)}`})
        : null,
      shown ? s('path', {class: 'truth', d: `M${inside(answer)} 40V60`}) : null,
      own === null ? null : s('path', {class: 'own', d: `M${inside(own)} 36l-6 -11h12z`}));
    return svg;
  }
  return {
    root: slider,
    guess: () => guess ?? (slider.querySelector('input').value === '' ? null : question.start ?? lo),
    restore(value) {
      guess = value;
      slider.set(value);
    },
    lock() { slider.querySelector('input').disabled = true; },
    reveal: (own, others) => [strip(own, others),
      h('p', {className: 'verdict'},
        t(how, {answer: words(question, answer, tell), error: digits(error ?? 0, 2)}), ' ',
        own === null ? '' : t(near(own, question) ? 'close' : 'yours', {own: words(question, own, tell)}))],
    tally: others => [h('p', {className: 'quiet'}, answers(frame, others)), strip(null, others, false)],
  };
}

// Whether a guess is as good as the measurement can tell, or within a tenth of the scale.
const near = (own, {answer, error = 0, lo, hi, log}) => {
  const off = log ? Math.abs(Math.log(own / answer)) / Math.log(hi / lo) : Math.abs(own - answer) / (hi - lo);
  return off <= 0.1 || Math.abs(own - answer) <= 2 * error;
};

function pick(frame, {question, tell, name, kit}) {
  const {h, t} = frame, {options, answer} = question;
  let guess = null;
  const inputs = options.map(
    (option, i) => h('input', {type: 'radio', name: `question-${name}`, onchange: () => { guess = i; }}));
  const rows = options.map(
    (option, i) => h('label', {className: 'option'}, inputs[i], h('span', {}, tell(`option.${option}`))));
  return {
    root: h('div', {className: 'options', role: 'radiogroup', 'aria-label': tell('question')},
      kit.shuffled('options', rows)),
    guess: () => guess,
    restore(value) {
      guess = value;
      if (inputs[value]) inputs[value].checked = true;
    },
    lock() {
      for (const input of inputs) input.disabled = true;
    },
    reveal(own) {
      rows[answer].classList.add('right');
      return h('p', {className: 'verdict'},
        own === answer ? t('right') : t('wrong', {answer: tell(`option.${options[answer]}`)}));
    },
    tally: others => counted(
      frame, options.map((option, i) => [tell(`option.${option}`), others.filter(v => v === i).length])),
  };
}

function order(frame, {question, tell, kit}) {
  const {h, t} = frame, {items, answer, values} = question;
  let now = kit.shuffled('order', items.map((_, i) => i)), touched = false;
  if (`${now}` === `${answer}`) now.reverse();  // a seed gives nothing away
  const list = h('ol', {className: 'order'});
  const label = i => tell(`option.${items[i]}`);
  function draw(locked = false) {
    const arrow = (place, by) => h('button', {
      type: 'button',
      className: 'plain',
      disabled: locked || !(place + by in now),
      textContent: by < 0 ? '↑' : '↓',
      'aria-label': t(by < 0 ? 'up' : 'down', {name: label(now[place])}),
      onclick: () => {
        [now[place], now[place + by]] = [now[place + by], now[place]];
        touched = true;
        draw();
        list.children[place + by]?.querySelectorAll('button')[by < 0 ? 0 : 1]?.focus();
      },
    });
    const row = (item, place) => h('li', {}, h('span', {}, label(item)),
      h('span', {className: 'moves'}, arrow(place, -1), arrow(place, 1)));
    list.replaceChildren(...now.map(row));
  }
  draw();
  return {
    root: list,
    guess: () => touched || items.length ? [...now] : null,
    restore(value) {
      if (value?.length === items.length) now = [...value];
      draw();
    },
    lock: () => draw(true),
    reveal(own) {
      const same = own && own.every((item, i) => item === answer[i]);
      return [
        h('p', {className: 'verdict'}, same ? t('right') : t('order_is')),
        h('ol', {className: 'order measured'},
          answer.map(item => h('li', {}, h('span', {}, label(item)),
                       values ? h('b', {}, words(question, values[item], tell)) : '')))
      ];
    },
    tally: others => counted(
      frame, items.map((_, i) => [label(i), others.filter(v => v[0] === i).length]), t('class.first')),
  };
}

// The learner answers in the figure. `guess` is a score that is compared with the best possible one.
function figure(frame, {question, tell, lesson}) {
  const {h, t} = frame;
  return {
    root: '',
    guess: () => lesson.guess(),
    lock() { lesson.locked = true; },
    reveal: own => h('p', {className: 'verdict'},
      question.of ? '' : t('measured', {answer: words(question, question.answer, tell)}), ' ',
      own !== null && t(question.of ? 'score' : 'yours', {own: words(question, own, tell), of: question.of})),
    tally: others => h('p', {className: 'quiet'}, answers(frame, others), ' ',
      t('class.middle', {middle: words(question, median(others), tell)})),
  };
}

const answers = ({t}, {length: n}) => t(n === 1 ? 'class.guess' : 'class.guesses', {n});
const median = list => {
  const sorted = [...list].sort((a, b) => a - b), half = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

function counted({h}, rows, title) {
  const most = Math.max(1, ...rows.map(([, n]) => n));
  return [
    title ? h('p', {className: 'quiet'}, title) : '',
    h('div', {className: 'counted'},
      rows.map(([name, n]) => h('div', {className: 'bar-row'}, h('span', {}, name),
                 h('i', {className: 'track'}, h('i', {className: 'fill', style: `width:${100 * n / most}%`})),
                 h('span', {className: 'figure'}, String(n)))))
  ];
}
