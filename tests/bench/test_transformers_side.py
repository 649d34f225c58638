"""transformers as it is measured, where it is not installed; where it is: `tests/parity/test_bench.py`."""

from __future__ import annotations

import sys

import pytest

from refdiff.bench.side import Settings, UnavailableError
from refdiff.bench.transformers_side import TransformersSide


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_what_is_missing_is_said_in_one_sentence(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
    with pytest.raises(UnavailableError, match=r"^--against transformers needs transformers and torch \(pip install"):
        TransformersSide(Settings()).answer("prepare")
