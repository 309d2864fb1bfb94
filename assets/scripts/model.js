// The field of the model: a list, or any name.
const pathHint = () => ce.data.public ? 'owner/name' : 'owner/name, /folder';
const plainText = {
  type: 'text',
  spellcheck: false,
  autocapitalize: 'off'
};

function chooseModel(name) {
  if (!name || name === ce.state.model) return;
  Object.assign(ce.state, {model: name, run: ''});
  changed();
  ce.say('model');
}

function modelField() {
  const {state, data} = ce, known = ce.model(state.model), custom = !known || form.dataset.custom === 'yes';
  const onchange = e => {
    form.dataset.custom = e.target.value ? '' : 'yes';
    chooseModel(e.target.value);
    drawKnobs();
    if (!e.target.value) form.querySelector('#custom')?.focus();
  };
  const pick = h('select', {id: 'model', onchange}, modelOptions(data.models, custom ? '' : state.model),
    optionList([['', t('controls.model.other')]], custom ? '' : state.model));
  const box = custom && h('input', {
    ...plainText,
    id: 'custom',
    value: known ? '' : state.model,
    placeholder: pathHint(),
    'aria-label': t('controls.model.custom'),
    onchange: e => chooseModel(e.target.value.trim()),
  });
  const help = t(data.public ? 'controls.model.help_public' : 'controls.model.help');
  return h('div', {className: 'field'}, label(t('controls.model'), help, 'model'), pick, box,
    known ? h('p', {className: 'quiet'}, modelFacts(known)) : '');
}

// A large number as its language says it: 135M, 1.35億.
const compact = n =>
  new Intl.NumberFormat(ce.lang, {notation: 'compact', maximumSignificantDigits: 3}).format(n);

function modelFacts(model) {
  const facts = {size: sizeWords(2 * model.parameters), parameters: compact(model.parameters)};
  return [
    t('controls.model.line', facts),
    model.chat && t('controls.model.chat'),
    model.offline && t('controls.model.offline'),
    model.gated && t('controls.model.gated'),
    model.rounded && t('controls.model.rounded', {format: model.rounded}),
  ].filter(Boolean)
    .join(' · ');
}
