"""The goals for a device, against reports of the bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refdiff.bench.report import evaluate
from refdiff.bench.rows import parse_rows
from tests.cuda.goals import GOALS, judged, main


def report(*, share: dict[str, float], ratio: float | None = None) -> dict[str, Any]:
    """What the bench writes where refdiff takes 1 s: so much of a ceiling of 100 a second, so many times as fast."""
    rows = []
    for name, part in share.items():
        (row,) = parse_rows(name)
        answer = {"amount": 1, "work": int(100 * part)}
        answers = {"refdiff": [{"seconds": 1.0, **answer}]}
        if ratio:
            answers["transformers"] = [{"seconds": ratio, **answer}]
        ceiling = {"kind": "copy" if name.startswith("decode") else "matmul", "rate": 100.0}
        rows.append(evaluate(row, answers, [ceiling] * 2, comparable=False))
    return {"rows": rows}


def test_each_goal_is_reached_or_missed_by_so_much() -> None:
    lines, well = judged(report(share={"decode:128": 0.9, "decode:2048": 0.1, "prefill:2048": 0.5}, ratio=1.5))
    assert not well
    assert lines == [
        "reached: decode:128, at least 0.85 of the copy bandwidth: 0.900",
        "missed by 0.500: decode:128, at least 2 times transformers: 1.500",
        "missed by 0.100: prefill:2048, at least 0.6 of the matrix rate: 0.500",
        "reached: prefill:2048, at least 1.2 times transformers: 1.500",
    ]
    assert judged(report(share={"decode:128": 0.85, "prefill:2048": 0.6}, ratio=2.0))[1]
    assert judged(report(share={"decode:128": 0.85}))[1]
    for unmeasured in (
        {"decode:2048": 0.9},
        {"decode:128": 1.2, "prefill:2048": 1.2},
    ):
        lines, well = judged(report(share=unmeasured))
        assert not well
        assert [line.partition(":")[0] for line in lines] == ["not measured"] * len(GOALS)


def test_the_exit_status_says_whether_all_were_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert main(str(file)) == 1
    assert capsys.readouterr().out == "the bench left no numbers\n"
    for share, status in ((0.9, 0), (0.4, 1)):
        file.write_text(json.dumps(report(share={"decode:128": share, "prefill:2048": share}, ratio=2.5)))
        assert main(str(file)) == status
        assert len(capsys.readouterr().out.splitlines()) == len(GOALS)
