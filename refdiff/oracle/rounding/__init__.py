"""What correct kernels round: number formats, recipes, valid orders of evaluation, and their combination."""

from refdiff.oracle.rounding.number_formats import FORMATS as FORMATS
from refdiff.oracle.rounding.number_formats import NARROW as NARROW
from refdiff.oracle.rounding.number_formats import U32 as U32
from refdiff.oracle.rounding.number_formats import root_mean_square as root_mean_square
from refdiff.oracle.rounding.number_formats import round_to as round_to
from refdiff.oracle.rounding.number_formats import rounds_to_finite as rounds_to_finite
from refdiff.oracle.rounding.number_formats import safe_ratio as safe_ratio
from refdiff.oracle.rounding.number_formats import truncate_to as truncate_to
from refdiff.oracle.rounding.number_formats import ulp as ulp
