"""Find the first point of a trace that is wrong, given a reference run."""

from refdiff.oracle.divergence.first_divergence import first_divergence
from refdiff.oracle.divergence.report import Divergence, Stage

__all__ = ["Divergence", "Stage", "first_divergence"]
