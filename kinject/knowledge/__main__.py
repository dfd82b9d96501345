"""`python -m kinject.knowledge` is `kinject knowledge`: see cli/knowledge.py."""

import sys

from kinject.cli.knowledge import main

if __name__ == "__main__":
    sys.exit(main())
