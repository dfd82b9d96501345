"""`python -m kinject.evaluate` is `kinject evaluate`: see cli/evaluate.py."""

import sys

from kinject.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
