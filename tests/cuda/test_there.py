"""Whether the tests have a CUDA device."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff import arrays
from tests.cuda.there import cuda


def test_without_a_device_there_is_none_unless_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise RuntimeError(f"{name} does not answer")

    monkeypatch.setattr(arrays, "backend", refuse)
    monkeypatch.delenv("REFDIFF_NEED_CUDA", raising=False)
    assert cuda() is None
    monkeypatch.setenv("REFDIFF_NEED_CUDA", "1")
    with pytest.raises(RuntimeError, match="cupy does not answer"):
        cuda()


def test_what_cupy_warns_of_is_no_reason_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(size: int) -> Any:
        warnings.warn("of another version", UserWarning, stacklevel=2)
        return np.ones(size)

    fake = SimpleNamespace(ones=ones, sum=np.sum)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", np)
    assert cuda() is fake
