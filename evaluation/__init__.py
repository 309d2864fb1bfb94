"""Measures models, keeps the results and compares them.

spec, records, store, host, limits, verdict
                what a run is, where its result is kept, what this machine is, which of two results is better
measuring/      what is measured: perplexity, divergence, generation, latency, memory; metrics.py declares
                every figure
running/        a run from request to result: estimate, worker, runner, chat; witness: whether a stored answer
                still holds
choosing/       what fits into a memory, before anything is run
page/           the questions of the browser, and their answers
benches/        the measurements for the README, and public programs beside ours
commands/       python -m evaluation run | plan | results | export | task-files | measure | tables | ...
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
