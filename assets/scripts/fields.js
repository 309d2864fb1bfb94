// What is folded away under the knobs: how the method works, its other parameters, and how it is measured.

const essays = {};  // They are asked for when they are opened: they are a third of all words.
async function tell(place, method) {
  const key = `${ce.lang} ${method}`;
  essays[key] ??= (await ce.ask(server.ask_essay, {method}))?.text;
  const drawn = one => h('p', {className: one.formula ? 'formulas' : ''}, one.text);
  place.replaceChildren(...paragraphs(essays[key] ?? '').map(drawn));
}

// A text's paragraphs. Indented lines are formulas and stay lines; the others flow.
function paragraphs(text) {
  const parts = [];
  for (const paragraph of text.replaceAll('`', '').split(/\n\s*\n/)) {
    let last = null;
    for (const line of paragraph.split('\n')) {
      const formula = /^\s{4}/.test(line);
      if (last?.formula === formula) last.text += (formula ? '\n' : ' ') + line;
      else parts.push(last = {formula, text: line});
    }
  }
  return parts;
}

// The essay opens over the page, where its formulas have room and push nothing away.
const reader = h('dialog', {
  className: 'reader',
  onclick: e => {
    if (e.target === reader) reader.close();
  }
});
function about(method) {
  const {paper} = ce.method(method);
  const open = () => {
    const place = h('div', {className: 'essay'}), title = t(`method.${method}`);
    reader.setAttribute('aria-label', title);
    const onclick = () => reader.close();
    const close = h('button', {className: 'plain', type: 'button', onclick}, t('controls.close'));
    reader.replaceChildren(h('div', {className: 'reader-head'}, h('h2', {}, title), close), place,
      paper ? h('a', {href: paper, target: '_blank', rel: 'noopener'}, t('controls.paper')) : '');
    reader.showModal();
    tell(place, method);
  };
  return h('button', {type: 'button', className: 'linklike about', onclick: open}, t('controls.about'));
}

function advanced() {
  const others = step => ce.method(step.method).params.filter(p => !p.main && !idleIn(step).includes(p.name));
  const steps = ce.state.steps.filter(step => others(step).length);
  if (!steps.length) return '';
  const name = step => steps.length > 1 ? h('p', {className: 'quiet wide'}, t(`method.${step.method}`)) : '';
  return h('details', {className: 'fold', 'data-k': 'advanced'}, h('summary', {}, t('controls.advanced')),
    steps.map(step => h('div', {className: 'grid'}, name(step), others(step).map(p => field(step, p)))));
}

// A parameter's name for one of its values.
function valueName(p, value) {
  if (value === WHOLE_ROW[p.name]) return t('value.row');
  return typeof value === 'string' && ce.has(`value.${value}`) ? t(`value.${value}`) : String(value);
}

function field(step, p) {
  const values = ce.values(step), value = values[p.name];
  const id = `p-${step.method}-${p.name}`, usual = {id, disabled: !effective(p, values)};
  const title = label(t(`param.${p.name}`), t(`param.${p.name}.help`), id);
  // What decides about other fields draws the form anew.
  const decides = p.choices || p.type === 'bool' || p.type === 'str' || p.name in ce.method(step.method).full;
  const set = v => {
    put(step, p.name, v);
    fit();
    if (decides) changed();
    else weigh();
  };
  if (p.type === 'bool') {
    const box =
      h('input', {...usual, type: 'checkbox', checked: value, onchange: e => set(e.target.checked)});
    return h('div', {className: 'field check'}, box, title);
  }
  const options = p.choices ?? p.suggest;
  if (options) {
    const all = options.includes(value) ? options : [...options, value];
    const onchange = e => set(p.type === 'str' ? e.target.value : Number(e.target.value));
    const names = all.map(v => [v, valueName(p, v)]);
    return h('div', {className: 'field'}, title, h('select', {...usual, onchange}, optionList(names, value)));
  }
  if (p.type === 'str') {
    const placeholder = NAMES_A_MODEL.includes(p.name) ? pathHint() : '';
    const onchange = e => set(e.target.value.trim());
    const box = h('input', {...usual, ...plainText, value, placeholder, onchange});
    return h('div', {className: 'field wide'}, title, box);
  }
  const limits = {min: p.lo, max: p.hi, step: p.step ?? 'any'}, onchange = e => set(Number(e.target.value));
  return h(
    'div', {className: 'field'}, title, h('input', {...usual, ...limits, type: 'number', value, onchange}));
}

// How a run is measured. The lists of bits and scales are RunSpec's (evaluation/spec.py).
function settings() {
  const bits = v => t('setting.bits', {v}), choice = key => v => t(`setting.${key}.${v}`);
  const named = {text: ce.data.texts, calibration: ce.data.calibrations};
  const lists = Object.entries(named).map(
    ([key, names]) => h('datalist', {id: `ce-named-${key}`}, names.map(value => h('option', {value}))));
  return h('details', {className: 'fold', 'data-k': 'settings'}, h('summary', {}, t('controls.settings')),
    lists,
    h('div', {className: 'grid'}, presetField(), textField('text', named.text),
      textField('calibration', named.calibration), listField('protocol', ['raw', 'paper'], v => v),
      numberField('tokens', t('setting.whole')), numberField('calibration_tokens'), numberField('window'),
      numberField('seed'), listField('table_bits', [16, 8, 4], bits),
      listField('activations', ['exact', 'int8'], choice('activations')),
      listField('cache_bits', [16, 8, 4, 2], bits),
      listField('cache_keys', ['token', 'channel'], choice('cache_keys'))));
}

const settingField = (key, control) =>
  h('div', {className: 'field'}, label(t(`setting.${key}`), t(`setting.${key}.help`), `s-${key}`), control);

function putSetting(key, value) {
  ce.state.settings[key] = value;
  ce.write();
  weigh();
}

function presetField() {
  const onchange = e => {
    Object.assign(ce.state.settings, ce.data.presets[e.target.value], {preset: e.target.value});
    changed();
  };
  const names = Object.keys(ce.data.presets).map(key => [key, t(`setting.preset.${key}`)]);
  const {preset} = ce.state.settings;
  return settingField('preset', h('select', {id: 's-preset', onchange}, optionList(names, preset)));
}

function listField(key, values, name) {
  const value = ce.state.settings[key], numeric = typeof values[0] === 'number';
  const onchange = e => putSetting(key, numeric ? Number(e.target.value) : e.target.value);
  const pairs = values.map(v => [v, name(v)]);
  return settingField(key, h('select', {id: `s-${key}`, onchange}, optionList(pairs, value)));
}

// `empty`: what no number means, where it means something; else it means the usual number.
function numberField(key, empty) {
  const nothing = empty ? null : settingsAtFirst(ce.data)[key];
  const onchange = e => putSetting(key, e.target.value === '' ? nothing : Number(e.target.value));
  return settingField(key, h('input', {
    id: `s-${key}`,
    type: 'number',
    min: key === 'seed' ? 0 : 1,
    step: 1,
    value: ce.state.settings[key] ?? '',
    placeholder: empty ?? '',
    onchange,
  }));
}

// On a public page a text is one of the named; on one's own machine a file too.
function textField(key, names) {
  const value = ce.state.settings[key], id = `s-${key}`;
  if (ce.data.public) {
    const pairs = names.map(v => [v, v]), onchange = e => putSetting(key, e.target.value);
    return settingField(key, h('select', {id, onchange}, optionList(pairs, value)));
  }
  const onchange = e => putSetting(key, e.target.value.trim() || settingsAtFirst(ce.data)[key]);
  const box = h('input', {id, type: 'text', list: `ce-named-${key}`, spellcheck: false, value, onchange});
  return settingField(key, h('span', {}, box));
}
