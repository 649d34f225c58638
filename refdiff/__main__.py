"""`python -m refdiff`, and the `refdiff` command."""

import faulthandler
import sys


def main() -> int:
    """Run the command line."""
    from refdiff.cli import main as run

    faulthandler.enable(2)  # SIGBUS: a memory-mapped file was cut short while it was read
    return run()


if __name__ == "__main__":
    sys.exit(main())
