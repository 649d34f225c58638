"""Every intermediate of a run, under the paths of transformers' modules and the points between them."""

from refdiff.oracle.trace.torch_hooks import hooks
from refdiff.oracle.trace.trace import Trace, trace
from refdiff.oracle.trace.trace_files import read_trace

__all__ = ["Trace", "hooks", "read_trace", "trace"]
