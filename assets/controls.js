// The knobs, the estimate, the one button, and the progress of a run. Everything is drawn from the methods' declarations.
(async () => {
  await ce.ready;
  const {t} = ce, s = ce.state;
  let weighed = {path: [], stored: ''}, asked = 0, timer = 0, following = '', stage = '', began = 0, thenChat = false, slow = false;
  const form = h('form', {className: 'knobs', onsubmit: e => e.preventDefault()});
  const estimate = h('div', {className: 'estimate'}), go = h('button', {className: 'primary go', type: 'button', onclick: () => start()});
  const four = h('button', {className: 'linklike four', type: 'button', onclick: runFour}), trouble = h('div', {className: 'trouble'});
  const bar = h('progress', {max: 1, value: 0}), words = h('p', {className: 'stage'}), say = h('span', {className: 'sr', role: 'status'});
  const stop = h('button', {className: 'plain', type: 'button', onclick: end}), title = h('p', {className: 'now'});
  const picture = h('div', {className: 'picture', hidden: true}), enough = h('button', {className: 'plain', type: 'button', hidden: true, onclick: settle});
  const progress = h('div', {className: 'progress', hidden: true}, title, h('div', {className: 'row'}, bar, stop), words, picture, enough);
  root.replaceChildren(form, h('div', {className: 'runbar'}, estimate, go, progress, trouble, say), four);

  // What can follow a step: methods that accept the format it stores; after factors alone, whatever rounds.
  const rounds = m => m.family === 'quantization' && !m.params.some(p => p.name === 'rounding') && !m.params.some(p => p.name === 'threshold');
  const after = (first, values) => ce.data.methods.filter(m => m.name !== 'none' && (values?.rounding === false ? rounds(m) : m.after.includes(ce.method(first).stores)));
  const size = n => n >= 1e9 ? `${(n / 1e9).toPrecision(2)} GB` : `${Math.round(n / 1e6)} MB`;

  // --- the form ---
  function draw() {
    const held = document.activeElement?.id, open = Object.fromEntries([...form.querySelectorAll('details[data-k]')].map(d => [d.dataset.k, d.open]));
    const family = ce.method(s.steps[0].method).family;
    form.replaceChildren(
      h('h2', {className: 'sr'}, t('controls.title')), model(), tiles(family), picker(0, ce.data.methods.filter(m => m.family === family)), about(s.steps[0].method),
      knob(0), budget(0), second(), advanced(), settings());
    for (const d of form.querySelectorAll('details[data-k]')) d.open = open[d.dataset.k] ?? false;
    four.hidden = !mainOf(lastStep()) || Boolean(following);
    four.textContent = t('controls.four');
    stop.textContent = t('controls.stop');
    enough.textContent = t('progress.enough');
    bar.setAttribute('aria-label', t('progress.label'));
    if (held) document.getElementById(held)?.focus({preventScroll: true});
  }
  const lastStep = () => s.steps[s.steps.length - 1];
  const mainOf = step => ce.method(step.method).params.find(p => p.main && effective(p, ce.values(step)));
  const effective = (p, values) => Object.entries(p.when ?? {}).every(([k, v]) => (values[k] ?? v) === v);
  const label = (text, help, id) => h('label', {htmlFor: id}, text, help ? h('span', {className: 'q', tabIndex: 0, 'data-tip': help, 'aria-label': help}, '?') : '');

  function model() {
    const known = ce.model(s.model), custom = !known || form.dataset.custom === 'yes';
    const facts = known ? [t('controls.model.line', {size: size(2 * known.parameters), parameters: Math.round(known.parameters / 1e6)}),
      known.chat && t('controls.model.chat'), known.offline && t('controls.model.offline'), known.gated && t('controls.model.gated'),
      known.rounded && t('controls.model.rounded', {format: known.rounded})].filter(Boolean).join(' · ') : '';
    const set = name => { if (!name || name === s.model) return; s.model = name; s.run = ''; ce.write(); draw(); weigh(); ce.say('model'); };
    const names = [...ce.data.models].sort((a, b) => b.offline - a.offline);
    const select = h('select', {id: 'model', onchange: e => { form.dataset.custom = e.target.value === '' ? 'yes' : ''; if (e.target.value) set(e.target.value); draw(); if (!e.target.value) form.querySelector('#custom')?.focus(); }},
      names.map(m => h('option', {value: m.name, selected: !custom && m.name === s.model}, m.name)), h('option', {value: '', selected: custom}, t('controls.model.other')));
    const box = custom ? h('input', {id: 'custom', type: 'text', spellcheck: false, autocapitalize: 'off', value: known ? '' : s.model, placeholder: ce.data.public ? 'owner/name' : 'owner/name, /folder',
      'aria-label': t('controls.model.custom'), onchange: e => set(e.target.value.trim())}) : '';
    return h('div', {className: 'field'}, label(t('controls.model'), t(ce.data.public ? 'controls.model.help_public' : 'controls.model.help'), 'model'), select, box, facts ? h('p', {className: 'quiet'}, facts) : '');
  }
  function tiles(chosen) {
    const families = [...new Set(ce.data.methods.map(m => m.family))].sort((a, b) => (a === 'original') - (b === 'original'));
    return h('fieldset', {className: 'tiles'}, h('legend', {}, t('controls.family')), families.map(f => h('label', {className: 'tile'},
      h('input', {type: 'radio', name: 'family', id: `family-${f}`, value: f, checked: f === chosen, onchange: () => choose(0, best(f))}),
      h('span', {className: `swatch ${f}`}), h('span', {}, h('b', {}, t(`family.${f}`)), h('small', {}, t(`family.${f}.sub`))))));
  }
  const first = methods => (methods.find(m => m.first) ?? methods[0]).name;
  const best = family => first(ce.data.methods.filter(m => m.family === family));
  const fits = () => { if (s.steps[1] && !after(s.steps[0].method, ce.values(s.steps[0])).some(m => m.name === s.steps[1].method)) s.steps.pop(); };
  function choose(i, name) {
    s.steps[i] = {method: name};
    fits();
    changed(true);
  }
  function picker(i, methods) {
    if (methods.length < 2) return i === 0 ? h('p', {className: 'line'}, t(`method.${methods[0].name}.line`)) : '';
    const id = i ? 'then' : 'method';
    return h('div', {className: 'field'}, label(t(i ? 'controls.then' : 'controls.method'), '', id),
      h('select', {id, onchange: e => choose(i, e.target.value)}, methods.map(m => h('option', {value: m.name, selected: m.name === s.steps[i].method}, t(`method.${m.name}`)))),
      h('p', {className: 'line'}, t(`method.${s.steps[i].method}.line`)));
  }
  // A paragraph's indented lines are formulas and stay lines; the others flow.
  const runs = paragraph => paragraph.split('\n').reduce((all, line) => {
    const formula = /^\s{4}/.test(line), last = all.at(-1);
    if (last && last.formula === formula) last.text += (formula ? '\n' : ' ') + line;
    else all.push({formula, text: line});
    return all;
  }, []).map(r => h('p', {className: r.formula ? 'formulas' : ''}, r.text));
  const essays = {};  // asked for when they are opened: they are a third of all words
  async function tell(place, name) {
    const key = `${ce.lang} ${name}`;
    essays[key] ??= (await ce.ask(server.ask_essay, {method: name}))?.text;
    place.replaceChildren(...(essays[key] ?? '').replaceAll('`', '').split(/\n\s*\n/).flatMap(runs));
  }
  function about(name) {
    const m = ce.method(name), place = h('div');
    return h('details', {className: 'about', 'data-k': 'about', ontoggle: e => { if (e.target.open) tell(place, name); }}, h('summary', {}, t('controls.about')),
      place, m.paper ? h('a', {href: m.paper, target: '_blank', rel: 'noopener'}, t('controls.paper')) : '');
  }
  const shown = (name, v) => ['sparsity', 'removed', 'kept'].includes(name) ? `${Math.round(100 * v)} %` : String(+(+v).toFixed(4));
  function knob(i) {
    const step = s.steps[i], values = ce.values(step), p = ce.method(step.method).params.find(x => x.main);
    if (!p) return '';
    const on = effective(p, values), id = `knob-${i}`;
    const big = h('output', {className: 'big', htmlFor: id}, shown(p.name, values[p.name]), p.name === 'bits' ? h('small', {}, t('value.bits', {v: ''}).trim()) : '');
    const range = h('input', {id, type: 'range', min: p.lo, max: p.hi, step: p.step, value: values[p.name], disabled: !on, 'aria-valuetext': ce.has(`value.${p.name}`) ? t(`value.${p.name}`, {v: shown(p.name, values[p.name])}) : '',
      oninput: e => {
        const v = Number(e.target.value);
        set(step, p.name, v);
        big.firstChild.textContent = shown(p.name, v);
        e.target.setAttribute('aria-valuetext', t(`value.${p.name}`, {v: shown(p.name, v)}));
        if (step === lastStep()) ghost(v);
        weigh(120);
      },
      onkeydown: e => { if (e.key === 'Enter') { e.preventDefault(); weigh(0).then(() => start()); } }});
    return h('div', {className: `knob${on ? '' : ' off'}`}, h('div', {className: 'knob-head'}, label(t(`param.${p.name}`), t(`param.${p.name}.help`), id), big), range,
      h('div', {className: 'ends', 'aria-hidden': 'true'}, h('span', {}, t(`param.${p.name}.low`)), h('span', {}, t(`param.${p.name}.high`))), on ? '' : h('p', {className: 'quiet'}, t('controls.no_effect')));
  }
  // A training's short budget is its defaults; the full one is what the paper spends (Method.full). Both set the main knob
  // too, which may be moved afterwards.
  function budget(i) {
    const step = s.steps[i], {full, params} = ce.method(step.method), values = ce.values(step), names = Object.keys(full), id = `budget-${i}`;
    if (!names.length) return '';
    const short = Object.fromEntries(params.filter(p => names.includes(p.name)).map(p => [p.name, p.default])), choices = {short, full};
    const now = Object.keys(choices).find(k => names.every(n => params.find(p => p.name === n).main || values[n] === choices[k][n])) ?? 'own';
    const tokens = v => v.train_tokens ? t('controls.budget.tokens', {tokens: new Intl.NumberFormat(ce.lang, {notation: 'compact', maximumFractionDigits: 1}).format(v.train_tokens)}) : '';
    return h('div', {className: 'field'}, label(t('controls.budget'), t('controls.budget.help'), id),
      h('select', {id, onchange: e => { for (const [k, v] of Object.entries(choices[e.target.value] ?? {})) set(step, k, v); changed(true); }},
        [...Object.keys(choices), ...(now === 'own' ? ['own'] : [])].map(k => h('option', {value: k, selected: k === now}, t(`budget.${k}`) + tokens(choices[k] ?? {})))));
  }
  function second() {
    if (s.steps[1]) return h('div', {className: 'second'}, picker(1, after(s.steps[0].method, ce.values(s.steps[0]))), knob(1), budget(1),
      h('button', {type: 'button', className: 'linklike', onclick: () => { s.steps.pop(); changed(true); }}, t('controls.remove_step')));
    const next = after(s.steps[0].method, ce.values(s.steps[0]));
    if (!next.length || ce.method(s.steps[0].method).family === 'original') return '';
    return h('button', {type: 'button', className: 'linklike add', onclick: () => choose(1, first(next))}, t('controls.add_step'));
  }
  function field(step, p) {
    const values = ce.values(step), id = `p-${step.method}-${p.name}`, on = effective(p, values);
    const put = v => { set(step, p.name, v); fits(); p.choices || p.type === 'bool' || p.name in ce.method(step.method).full ? changed(true) : weigh(); };
    const title = label(t(`param.${p.name}`), t(`param.${p.name}.help`), id);
    if (p.type === 'bool') return h('div', {className: 'field check'}, h('input', {id, type: 'checkbox', checked: values[p.name], disabled: !on, onchange: e => put(e.target.checked)}), title);
    const options = p.choices ?? p.suggest;
    const name = v => p.name === 'group_size' ? (v === -1 ? t('value.row') : String(v)) : ce.has(`value.${v}`) ? t(`value.${v}`) : String(v);
    if (options) {
      const all = options.includes(values[p.name]) ? options : [...options, values[p.name]];
      return h('div', {className: 'field'}, title, h('select', {id, disabled: !on, onchange: e => put(p.type === 'str' ? e.target.value : Number(e.target.value))},
        all.map(v => h('option', {value: v, selected: v === values[p.name]}, name(v)))));
    }
    if (p.type === 'str') return h('div', {className: 'field wide'}, title, h('input', {id, type: 'text', spellcheck: false, autocapitalize: 'off', value: values[p.name], disabled: !on,
      placeholder: p.name === 'student' ? (ce.data.public ? 'owner/name' : 'owner/name, /folder') : '', onchange: e => { set(step, p.name, e.target.value.trim()); changed(true); }}));
    return h('div', {className: 'field'}, title, h('input', {id, type: 'number', min: p.lo, max: p.hi, step: p.step ?? 'any', value: values[p.name], disabled: !on, onchange: e => put(Number(e.target.value))}));
  }
  function advanced() {
    const parts = s.steps.map(step => [step, ce.method(step.method).params.filter(p => !p.main)]).filter(([, ps]) => ps.length);
    if (!parts.length) return '';
    return h('details', {className: 'fold', 'data-k': 'advanced'}, h('summary', {}, t('controls.advanced')),
      parts.map(([step, ps]) => h('div', {className: 'grid'}, parts.length > 1 ? h('p', {className: 'quiet wide'}, t(`method.${step.method}`)) : '', ps.map(p => field(step, p)))));
  }
  function settings() {
    const st = s.settings, put = (k, v) => { st[k] = v; ce.write(); weigh(); };
    const one = (k, control) => h('div', {className: 'field'}, label(t(`setting.${k}`), t(`setting.${k}.help`), `s-${k}`), control);
    const pick = (k, options, name, f = v => v) => one(k, h('select', {id: `s-${k}`, onchange: e => { put(k, f(e.target.value)); }}, options.map(v => h('option', {value: v, selected: v === st[k]}, name(v)))));
    const number = (k, empty) => one(k, h('input', {id: `s-${k}`, type: 'number', min: k === 'seed' ? 0 : 1, step: 1, value: st[k] ?? '', placeholder: empty ?? '', onchange: e => put(k, e.target.value === '' ? (empty ? null : ce.defaults()[k]) : Number(e.target.value))}));
    const named = {text: ce.data.texts, calibration: ce.data.calibrations};
    const text = k => one(k, ce.data.public
      ? h('select', {id: `s-${k}`, onchange: e => put(k, e.target.value)}, named[k].map(v => h('option', {value: v, selected: v === st[k]}, v)))
      : h('span', {}, h('input', {id: `s-${k}`, type: 'text', list: `ce-named-${k}`, spellcheck: false, value: st[k], onchange: e => put(k, e.target.value.trim() || 'builtin')})));
    const preset = one('preset', h('select', {id: 's-preset', onchange: e => { Object.assign(st, ce.data.presets[e.target.value], {preset: e.target.value}); ce.write(); draw(); weigh(); }},
      Object.keys(ce.data.presets).map(k => h('option', {value: k, selected: k === st.preset}, t(`setting.preset.${k}`)))));
    return h('details', {className: 'fold', 'data-k': 'settings'}, h('summary', {}, t('controls.settings')), Object.keys(named).map(k => h('datalist', {id: `ce-named-${k}`}, named[k].map(v => h('option', {value: v})))),
      h('div', {className: 'grid'}, preset, text('text'), text('calibration'), pick('protocol', ['raw', 'paper'], v => v), number('tokens', t('setting.whole')), number('calibration_tokens'), number('window'), number('seed'),
        pick('table_bits', [16, 8, 4], v => t('setting.bits', {v}), Number), pick('activations', ['exact', 'int8'], v => t(`setting.activations.${v}`)),
        pick('cache_bits', [16, 8, 4, 2], v => t('setting.bits', {v}), Number), pick('cache_keys', ['token', 'channel'], v => t(`setting.cache_keys.${v}`))));
  }
  function set(step, name, v) {
    ce.memory[step.method] = {...(ce.memory[step.method] ?? {}), [name]: v};
    ce.write();
  }
  function changed(redraw) {
    ce.write();
    if (redraw) draw();
    weigh();
  }

  // --- the estimate ---
  function ghost(value) {
    const found = weighed.path.find(p => Math.abs(p.at - value) < 1e-9);
    ce.say('ghost', found ? {bytes: found.bytes, words: found.hint} : weighed.bytes ? {bytes: weighed.bytes, words: weighed.hint} : null);
    const line = estimate.querySelector('.size');
    if (found && line) { line.querySelector('b').textContent = found.size; line.querySelector('span').textContent = found.smaller; }
    if (found) { weighed.stored = ''; button(true); }
  }
  function weigh(wait = 0) {
    clearTimeout(timer);
    const turn = ++asked;
    if (!estimate.childElementCount) estimate.replaceChildren(h('p', {className: 'wait quiet'}, t('controls.wait')));
    return new Promise(done => { timer = setTimeout(async () => {
      const got = await ce.ask(server.ask_weigh, {choices: ce.choices()});
      if (turn !== asked) return done();
      if (!got) { setTimeout(() => turn === asked && weigh(), 2500); return done(); }
      weighed = got;
      estimate.innerHTML = got.error || got.html;
      button();
      const p = mainOf(lastStep());
      p ? ghost0(ce.values(lastStep())[p.name]) : ce.say('ghost', null);
      done();
    }, wait); });
  }
  function ghost0(value) {  // the line only; the words beside it are the server's
    const found = weighed.path.find(p => Math.abs(p.at - value) < 1e-9);
    ce.say('ghost', weighed.stored ? null : found ? {bytes: found.bytes, words: found.hint} : weighed.bytes ? {bytes: weighed.bytes, words: weighed.hint} : null);
  }
  function button(moving = false) {
    const original = s.steps.every(x => x.method === 'none') && s.settings.cache_bits === 16;
    go.textContent = t(weighed.stored ? 'controls.show' : original ? 'controls.measure' : 'controls.run');
    go.disabled = Boolean(following) || (!moving && (Boolean(weighed.error) || (!weighed.fits && !weighed.stored)));
    go.hidden = Boolean(following);
    root.classList.toggle('running', Boolean(following));
  }

  // --- running ---
  async function start({again = false, chat = false, choices = null} = {}) {
    if (following) return;
    trouble.replaceChildren();
    if (weighed.stored && !again && !choices) return ce.select(weighed.stored, 'button');
    if (go.disabled && !choices) return;
    thenChat = chat;
    go.disabled = true;
    const got = await ce.ask(server.ask_begin, {choices: choices ?? ce.choices(), visitor: ce.visitor, again});
    if (!got) { button(); return; }
    if (got.error) { trouble.innerHTML = got.error; keep('ce-four', null); button(); return; }
    ce.state.run = got.id;
    ce.write();
    follow(got.id);
  }
  function keep(name, value) {
    try { value === null ? localStorage.removeItem(name) : localStorage.setItem(name, JSON.stringify(value)); } catch (e) {}
  }
  function kept(name) {
    try { return JSON.parse(localStorage.getItem(name)); } catch (e) { return null; }
  }
  function follow(id) {
    following = id;
    began = performance.now();
    slow = false;
    stage = '';
    keep('ce-follow', id);
    progress.hidden = false;
    picture.hidden = enough.hidden = true;
    enough.disabled = false;
    bar.removeAttribute('value');
    title.textContent = '';
    words.textContent = t('progress.starting');
    button();
    four.hidden = true;
    tick(id);
  }
  async function tick(id) {
    if (following !== id || !root.isConnected) return;
    const got = await ce.ask(server.ask_poll, {id, visitor: ce.visitor});
    if (following !== id) return;
    if (!got) words.textContent = t('app.lost');
    else if (got.status === 'queued' || got.status === 'running') {
      slow ||= weighed.seconds && performance.now() - began > 2000 * weighed.seconds;
      title.textContent = t('progress.title', {name: got.name});
      words.textContent = [got.stage, got.left, slow ? t('progress.slower') : ''].filter(Boolean).join(' · ');
      got.status === 'queued' || !got.done ? bar.removeAttribute('value') : bar.value = got.done;
      picture.hidden = !got.curve;
      if (got.curve) picture.innerHTML = got.curve;
      enough.hidden = !got.enough;
      const now = got.stage.replace(/\d+/g, '');
      if (now !== stage) { stage = now; say.textContent = got.stage; }
    } else return finish(id, got);
    setTimeout(() => tick(id), got?.status === 'queued' ? 2500 : 400);
  }
  function finish(id, got) {
    following = '';
    keep('ce-follow', null);
    progress.hidden = true;
    draw();
    ce.say('results');
    if (got.status === 'ok') {
      say.textContent = t('progress.done', {name: got.name});
      ce.select(got.result || id, 'run');
      if (thenChat) ce.setTab('chat');
    } else {
      trouble.innerHTML = got.error;
      keep('ce-four', null);
      if (ce.state.run === id && got.status !== 'unknown') ce.select(id, 'run');
    }
    thenChat = false;
    button();
    weigh();
    const rest = kept('ce-four');
    if (got.status === 'ok' && rest?.length) { keep('ce-four', rest.slice(1)); start({choices: rest[0]}); }
  }
  async function settle() {
    enough.disabled = true;
    if (following) await ce.ask(server.ask_enough, {id: following, visitor: ce.visitor});
  }
  async function end() {
    if (!following) return;
    stop.disabled = true;
    keep('ce-four', null);
    const got = await ce.ask(server.ask_stop, {id: following, visitor: ce.visitor});
    stop.disabled = false;
    if (!got?.left) return;
    following = '';
    keep('ce-follow', null);
    progress.hidden = true;
    trouble.replaceChildren(h('p', {className: 'quiet'}, got.left));
    draw();
    button();
  }
  // four points of the main knob, one after the other: each visitor has one place in the line
  function runFour() {
    const step = lastStep(), p = mainOf(step);
    if (!p || following) return;
    const values = p.type === 'int' ? [p.hi, p.lo + 2, p.lo + 1, p.lo] : [0.2, 0.4, 0.6, 0.8].filter(v => v >= p.lo && v <= p.hi);
    const list = values.map(v => { const c = ce.choices(); c.recipe[c.recipe.length - 1][1] = {...c.recipe[c.recipe.length - 1][1], [p.name]: v}; return c; });
    keep('ce-four', list.slice(1));
    start({choices: list[0]});
  }
  document.addEventListener('keydown', e => {
    if (e.key === 'Escape' && following && !/^(SELECT|TEXTAREA)$/.test(e.target.tagName) && e.target.type !== 'text') end();
  });
  ce.on('lang', () => { draw(); weigh(); if (following) tick(following); });
  ce.on('choices', () => { draw(); weigh(); });
  ce.on('run', options => weigh(0).then(() => start(options)));
  draw();
  button();
  weigh();
  // a run that was going on before a reload is found again
  (async () => {
    const id = kept('ce-follow') || s.run;
    if (!id) return;
    const got = await ce.ask(server.ask_poll, {id, visitor: ce.visitor});
    if (got && (got.status === 'queued' || got.status === 'running')) follow(id);
    else if (got && kept('ce-follow')) { keep('ce-follow', null); if (got.status !== 'ok') trouble.innerHTML = got.error; else if (!s.run) ce.select(got.result || id, 'run'); }
  })();
})();
