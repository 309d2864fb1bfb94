"""The command line: `python -m evaluation VERB ...`, each with its own --help."""

import importlib
import os
import sys

from evaluation.program import in_utf8

VERBS = {
    "run": ("evaluation.commands.run", "watched", "compress a model, measure it, keep the result"),
    "plan": ("evaluation.commands.plan", "main", "what fits into a memory, before anything runs"),
    "results": ("evaluation.commands.results", "main", "results as files, to merge several machines'"),
    "export": ("evaluation.commands.export", "main", "write a compressed model for another program"),
    "task-files": ("evaluation.commands.task_files", "main", "one compressed model, several tasks"),
    "measure": ("evaluation.benches.shipped", "main", "measure what ships in assets/results"),
    "answers": ("evaluation.benches.answers", "main", "record what shipped points answer, for the chat"),
    "tables": ("evaluation.benches.overview", "main", "write the README's tables from what is measured"),
    "layers": ("evaluation.benches.layers", "main", "the error that each method leaves in each layer"),
    "learn": ("evaluation.commands.learn", "main", "make the data of the lessons, or a folder with them"),
    "peers": ("evaluation.benches.peers", "main", "public programs beside ours"),
}


def main(argv: list[str]) -> int:
    """The exit code of the verb; 2 without one."""
    verb, *rest = argv or [""]
    if verb not in VERBS:
        wrong = [] if verb in ("", "-h", "--help") else [f"unknown verb {verb!r}"]
        lines = [
            *wrong,
            "usage: python -m evaluation VERB ...",
            *(f"  {name:<12}{about}" for name, (*_, about) in VERBS.items()),
        ]
        print("\n".join(lines), file=sys.stderr if wrong or not verb else sys.stdout)
        return 0 if verb in ("-h", "--help") else 2
    module, function, _ = VERBS[verb]
    return getattr(importlib.import_module(module), function)(rest)


if __name__ == "__main__":
    in_utf8()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, for example `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
