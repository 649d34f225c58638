"""The ways in which a kernel can deviate from its spec, and how to combine them.

A deviation is a wrong layer (`refdiff.oracle.mistakes`), another value of a field of `Spec`, or misread inputs.
`deviations(spec)` returns each different function once.
"""

from refdiff.oracle.deviations.deviation import Deviation, Kernel, deviated, output
from refdiff.oracle.deviations.listed import EVERY, deviations
from refdiff.oracle.inputs import kind_of

__all__ = ["EVERY", "Deviation", "Kernel", "deviated", "deviations", "kind_of", "output"]
