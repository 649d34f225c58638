"""Every intermediate of a run, under the paths of transformers' modules and the points between them."""

from refdiff.oracle.tracing.modules import hooks
from refdiff.oracle.tracing.reading import read_trace
from refdiff.oracle.tracing.trace import Trace, trace

__all__ = ["Trace", "hooks", "read_trace", "trace"]
