"""`python -m evaluation.run ...` is `python -m evaluation run ...`."""

import sys

from evaluation.commands.run import watched
from evaluation.program import in_utf8

if __name__ == "__main__":
    in_utf8()
    sys.exit(watched(sys.argv[1:]))
