// What the scripts know of single parameters because their declarations don't say it yet (`param` of
// compression/base.py). A line goes as soon as assets/methods.json has it.

const SHARES = ['sparsity', 'removed', 'kept'];  // Told in per cent: no unit says so.
const WHOLE_ROW = {
  group_size: -1
};  // A value that means one group a row.
const NAMES_A_MODEL = ['student'];
const TOKENS_OF_TRAINING = 'train_tokens';

// A step that only moves factors stores nothing of its own; what may follow it rounds, and does nothing else.
const onlyFactors = values => values?.rounding === false;
const justRounds = method => method.family === 'quantization' &&
  !method.params.some(p => p.name === 'rounding' || p.name === 'threshold');

// The values of the main knob for "four points".
function fourPoints({type, lo, hi}) {
  if (type === 'int') return [hi, lo + 2, lo + 1, lo];
  return [0.2, 0.4, 0.6, 0.8].filter(v => v >= lo && v <= hi);
}
