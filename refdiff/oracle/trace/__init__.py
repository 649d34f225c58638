"""Record every intermediate of a run, named by the paths of transformers' modules and of the points between them."""

from pathlib import Path

from refdiff.oracle.trace.trace import Trace, hooks, read_trace, trace

__all__ = ["POINTS", "Trace", "hooks", "read_trace", "trace"]

POINTS = Path(__file__).with_name("points.txt")
"""The page of all points, with shapes and descriptions."""
