"""`python -m kinject.predict` is `kinject predict`: see cli/predict.py."""

import sys

from kinject.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
