"""Every intermediate of a run, under the paths of transformers' modules and the points between them."""

from refdiff.oracle.tracing.trace import Trace, trace

__all__ = ["Trace", "trace"]
