"""`python -m kinject.train` is `kinject train`: see cli/train.py."""

import sys

from kinject.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
