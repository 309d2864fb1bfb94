"""`python -m evaluation.run ...` is `python -m evaluation run ...`."""

import sys

from evaluation.commands.run import watched

if __name__ == "__main__":
    sys.exit(watched(sys.argv[1:]))
