"""`python -m kinject.demo` is `kinject demo`: see cli/demo.py."""

import sys

from kinject.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
