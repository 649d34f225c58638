"""ONNX Runtime as it is measured, where it is not installed; where it is: `tests/parity/test_bench.py`."""

from __future__ import annotations

import sys

import pytest

from refdiff.bench.onnxruntime_side import OnnxRuntimeSide
from refdiff.bench.side import Settings, UnavailableError


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_what_is_missing_is_said_in_one_sentence(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
    with pytest.raises(UnavailableError, match=r"^--against onnxruntime needs onnxruntime and onnx \(pip install"):
        OnnxRuntimeSide(Settings()).answer("prepare")


def test_it_has_no_model() -> None:
    with pytest.raises(ValueError, match="OnnxRuntimeSide is asked for 'prefill', but does prepare, peak, product"):
        OnnxRuntimeSide(Settings()).answer("prefill", size=1, batch=1)
