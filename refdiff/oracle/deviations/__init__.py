"""What a kernel may do differently from its spec: every single deviation, and how they are put together.

A mistake of the catalogue (`refdiff.oracle.mistakes`) is a wrong layer; what is right for another source is another
value of a field of `Spec`; and inputs can be misread. `deviations(spec)` has each function once.
"""

from refdiff.oracle.deviations.deviation import Deviation, Problem, deviated, output
from refdiff.oracle.deviations.listed import EVERY, deviations
from refdiff.oracle.inputs import kind_of

__all__ = ["EVERY", "Deviation", "Problem", "deviated", "deviations", "kind_of", "output"]
