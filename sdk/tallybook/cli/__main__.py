"""``python -m tallybook.cli``: the command, where no script is installed."""

import sys

from tallybook.cli import main

if __name__ == "__main__":
    sys.exit(main())
