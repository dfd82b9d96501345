"""`python -m kinject.datasets` is `kinject data`: see cli/data.py."""

import sys

from kinject.cli.data import main

if __name__ == "__main__":
    sys.exit(main())
