"""python -m refdiff."""

import sys

from refdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
