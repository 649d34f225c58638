"""Record every intermediate of a run, named by the paths of transformers' modules and of the points between them."""

from refdiff.oracle.trace.trace import Trace, hooks, read_trace, trace

__all__ = ["Trace", "hooks", "read_trace", "trace"]
