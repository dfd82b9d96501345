"""`python -m kinject.report` is `kinject report`: see cli/report.py."""

import sys

from kinject.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
