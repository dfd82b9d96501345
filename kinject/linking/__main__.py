"""`python -m kinject.linking` is `kinject link`: see cli/link.py."""

import sys

from kinject.cli.link import main

if __name__ == "__main__":
    sys.exit(main())
