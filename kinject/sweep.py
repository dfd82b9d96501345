"""`python -m kinject.sweep` is `kinject sweep`: see cli/sweep.py."""

import sys

from kinject.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
