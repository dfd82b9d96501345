"""`python -m kinject.artefacts` is `kinject plugins`: see cli/plugins.py."""

import sys

from kinject.cli.plugins import main

if __name__ == "__main__":
    sys.exit(main())
