"""A short run of `refdiff train` comes out as the same run by transformers and torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refdiff.cli import main as refdiff_command
from tests.parity import train_with_torch
from tests.training.conftest import tale


@pytest.mark.parametrize(("wiring", "optimizer"), [("hf", "muon"), ("hf", "adamw"), ("none", "muon")])
def test_both_reach_the_same_validation_loss(tmp_path: Path, wiring: str, optimizer: str) -> None:
    (tmp_path / "tales.txt").write_text(tale(), encoding="utf-8")
    sizes = (
        "--vocab-size 270 --hidden-size 32 --layers 2 --heads 4 --inner-size 48 --context 32 --batch 4 --accumulate 2"
    )
    course = f"--wiring {wiring} --optimizer {optimizer} --rate 0.01 --steps 24 --warmup 3 --evaluate-every 8 --seed 3"
    out = tmp_path / "run"
    words = [
        "train",
        str(tmp_path / "tales.txt"),
        "-o",
        str(out),
        "-q",
        "--validation",
        "0.1",
        *f"{sizes} {course}".split(),
    ]
    assert refdiff_command(words) == 0
    again = [str(out), "-o", str(tmp_path / "found.jsonl"), "--keep", str(tmp_path / "state.pt")]
    train_with_torch.main([*again, "--steps", "10"])  # stopped after 10; the next goes on from 8
    train_with_torch.main(again)
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [record["step"] for record in found] == [8, 16, 24]
    assert found[-1]["refdiff"] < 0.9 * found[0]["refdiff"]
    for record in found:
        assert record["ratio"] == pytest.approx(1, abs=1e-3)
    train_with_torch.main([str(out), "-o", str(tmp_path / "at_once.jsonl")])
    assert [json.loads(line) for line in (tmp_path / "at_once.jsonl").read_text().splitlines()] == found
