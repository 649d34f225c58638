"""Where two runs part: the first point of a trace that is not what it should be."""

from refdiff.oracle.divergence.first_divergence import Divergence, Stage, first_divergence

__all__ = ["Divergence", "Stage", "first_divergence"]
