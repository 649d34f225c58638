"""Mistakes in how maps are subtracted."""

from __future__ import annotations

import pytest

from refdiff.oracle.mistakes.catalogue import Mistake
from refdiff.oracle.mistakes.in_attention import ATTENTION_MISTAKES
from tests.oracle.mistakes import checks

EACH = pytest.mark.parametrize("mistake", ATTENTION_MISTAKES, ids=str)


@EACH
def test_is_another_function_of_the_same_shape(mistake: Mistake) -> None:
    checks.is_another_function_of_the_same_shape(mistake)


@EACH
def test_a_model_can_be_mistaken(mistake: Mistake) -> None:
    checks.can_be_laid_over_a_model(mistake)
