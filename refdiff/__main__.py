"""`python -m refdiff`, and the `refdiff` command."""

import _signal as signal  # type: ignore[import-not-found]  # `signal` wraps it, but imports more modules
import faulthandler
import sys


def main() -> int:
    """Run the command line; until the command begins, Ctrl-C ends the process silently.

    A Ctrl-C before this, while Python itself starts, shows Python's traceback.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from refdiff.cli import main as run

    faulthandler.enable(2)  # SIGBUS: a memory-mapped file was cut short while it was read
    try:
        signal.signal(signal.SIGINT, handler)
        return run()
    finally:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # while Python shuts down, too


if __name__ == "__main__":
    sys.exit(main())
