"""The tester tested: mutants that must fail, correct kernels that must pass, and other rules on the same runs."""

from tests.oracle.selftest.page import page
from tests.oracle.selftest.run import PROFILES, RECIPES, selftest
from tests.oracle.selftest.table import Count, Table

__all__ = ["PROFILES", "RECIPES", "Count", "Table", "page", "selftest"]
