"""The tester tested: mutants that must fail, legal kernels that must pass, and other rules on the same runs."""

from refdiff.oracle.selftest.page import page
from refdiff.oracle.selftest.run import PROFILES, RECIPES, selftest
from refdiff.oracle.selftest.table import Count, Table

__all__ = ["PROFILES", "RECIPES", "Count", "Table", "page", "selftest"]
