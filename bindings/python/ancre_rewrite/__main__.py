"""``python -m ancre_rewrite``: the command-line tool."""

import sys

from ._call import main

if __name__ == "__main__":
    sys.exit(main())
