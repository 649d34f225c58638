"""Inputs of a small DiffLlama, which a test may change."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.inputs.sequences import Inputs
from tests.oracle.example_inputs import draw, small


@pytest.fixture
def x() -> Inputs:
    return draw(small("hf_diffllama"), dtype=np.float32)
