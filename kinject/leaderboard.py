"""`python -m kinject.leaderboard` is `kinject leaderboard`: see cli/leaderboard.py."""

import sys

from kinject.cli.leaderboard import main

if __name__ == "__main__":
    sys.exit(main())
