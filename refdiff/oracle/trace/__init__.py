"""Every intermediate of a run, under the paths of transformers' modules and the points between them."""

from refdiff.oracle.trace.trace import Trace, hooks, read_trace, trace

__all__ = ["Trace", "hooks", "read_trace", "trace"]
