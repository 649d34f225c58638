"""What is drawn of a report; that it is drawn: `tests/parity/test_bench.py`, where matplotlib is."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.bench.plot import can_draw, draw, panels
from refdiff.bench.rows import parse_rows


def _row(spelled: str, **sides: list[float]) -> dict[str, Any]:
    key = "bytes" if spelled.startswith("memory") else "seconds"
    return {"row": spelled, "sides": {name: {key: values} for name, values in sides.items()}, "error": None}


def test_panels_by_hand() -> None:
    rows = [
        _row("prefill:512", refdiff=[2.0, 1.0, 3.0], transformers=[4.0]),
        _row("prefill:128", refdiff=[0.5], transformers=[1.5]),
        _row("decode:128", refdiff=[4.0]),
        _row("decode:128x8", refdiff=[8.0]),
        _row("memory:128", refdiff=[3e9]),
        _row("memory:2048", refdiff=[5e9]),
        _row("train:3m", refdiff=[1.0]),
        {**_row("prefill:2048", refdiff=[]), "error": "no room"},
    ]
    found = {title: rest for title, *rest in panels({"rows": rows, "settings": {"decoded_tokens": 4}})}
    one, two = [(128, 0.5, 0.5, 0.5), (512, 2.0, 1.0, 3.0)], [(128, 1.5, 1.5, 1.5), (512, 4.0, 4.0, 4.0)]
    steps = [(1, 1000.0, 1000.0, 1000.0), (8, 2000.0, 2000.0, 2000.0)]
    assert found == {
        "reading a prompt": ["tokens of the prompt", "seconds", {"refdiff": one, "transformers": two}],
        "memory": ["tokens read", "peak, GB", {"refdiff": [(128, 3.0, 3.0, 3.0), (2048, 5.0, 5.0, 5.0)]}],
        "one more token of each sequence": ["sequences of 128 tokens", "milliseconds", {"refdiff": steps}],
    }


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ("prefill:512,decode:128,load", False),
        ("prefill:512,prefill:128", True),
        ("decode:128,decode:128x8", True),
        ("prefill:128x2,prefill:128x4", True),
        ("prefill:128x2,prefill:512x2", False),
        ("decode:128,decode:2048x8", False),
        ("product:1,product:8,train:3m", False),
    ],
)
def test_that_there_is_nothing_to_draw_is_known_beforehand(rows: str, drawn: bool) -> None:
    assert can_draw(parse_rows(rows)) is drawn
    if not drawn:
        with pytest.raises(ValueError, match="nothing to plot: measure prefill, decode or memory"):
            measured = [_row(row.spelled, refdiff=[2.0]) for row in parse_rows(rows)]
            draw({"rows": measured, "settings": {"decoded_tokens": 4}})
