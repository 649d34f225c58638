"""`refdiff trace --points`: every point that a run may have."""

from __future__ import annotations

import pytest

from refdiff.cli import main
from refdiff.oracle.trace.known_points import POINTS


def test_name_shape_and_meaning_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--points"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    module = said[said.index("model.layers.N.self_attn.") : said.index("model.layers.N.mlp.")]
    assert "\n  lambda_full  ()               λ, a number; in v2 (B, h, T, 1)\n" in module
    assert "\nmodel.layers.N  (B, T, D)  what the layer gives to the next\n" in said
    for point in POINTS:
        head, _, name = point.path.removesuffix(".input").rpartition(".")
        assert f"{point.path.removeprefix(head + '.') if 'N.' in point.path else name} " in said
        assert point.what
        assert point.shape in said
