"""`python -m kinject VERB …` is the command `kinject VERB …`."""

import sys

from kinject.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
