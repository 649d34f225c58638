"""The answer as a whole."""

from __future__ import annotations

import json

import pytest

from refdiff.oracle.budget.statistics import Statistic
from refdiff.oracle.verdict.verdict import TensorVerdict, Verdict


def _verdict(*states: str) -> Verdict:
    row = Statistic("row", float("inf"), 3.0, (0, 1), "rms(e_r) / E_r")
    return Verdict({f"x{i}": TensorVerdict(f"x{i}", s, (row,), ("because",)) for i, s in enumerate(states)}, "bfloat16")


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (("pass", "pass"), "pass"),
        (("pass", "inconclusive"), "inconclusive"),
        (("inconclusive", "fail"), "fail"),
    ],
)
def test_the_worst_of_its_tensors(states: tuple[str, ...], status: str) -> None:
    verdict = _verdict(*states)
    assert verdict.status == status
    assert bool(verdict) == (status == "pass")
    assert str(verdict).startswith(f"{status}, judged as bfloat16")


def test_raises_with_the_report_unless_it_is_a_pass() -> None:
    _verdict("pass").raise_for_status()
    for status in ("fail", "inconclusive"):
        with pytest.raises(AssertionError, match=r"(?s)row inf/3.*because"):
            _verdict(status).raise_for_status()


def test_it_is_80_columns_wide() -> None:
    reason = (
        "row: 32 of 560 rows are wrong, all in tokens 32 to 63 of head 3, rms is 117.7, allowed 3; row (b 1, head 3)"
    )
    verdict = Verdict({"out": TensorVerdict("out", "fail", (), (reason,), (reason,))}, "bfloat16", (reason,))
    assert max(map(len, str(verdict).splitlines())) <= 80
    assert str(verdict.tensors["out"]) in str(verdict)
    assert " ".join(str(verdict).split()).count(reason) == 3


def test_json_holds_it() -> None:
    found = json.loads(json.dumps(_verdict("pass", "fail").to_dict(), allow_nan=False))
    assert found["status"] == "fail"
    assert found["tensors"]["x1"]["statistics"]["row"] == {
        "value": "inf",
        "limit": 3.0,
        "at": [0, 1],
        "what": "rms(e_r) / E_r",
    }
