"""What chapter 05 says in words of the stored runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from experiments import results

STORED, TEXT = results.load()
RUNS, TEXT_RUNS = results.retrieval_runs(STORED), results.text_runs(TEXT)
LENGTHS = ["8", "16", "32", "64", "128", "256", "512"]


def test_the_kinds_have_the_sizes_of_its_table() -> None:
    header, maps, outputs, *_, width, parameters = results.size_rows(STORED)
    assert header == ["", "plain", "v1", "v2"]
    assert (maps[1:], outputs[1:], width[1:]) == (["2", "2", "4"], ["2", "1", "2"], ["128", "128", "106"])
    assert parameters[1:] == ["120,128", "120,384", "120,128"]
    of_text = [run["parameters"] for run in TEXT["runs"]]
    assert max(of_text) < 1.003 * min(of_text)


def test_both_differential_kinds_learn_the_look_up_sooner() -> None:
    learned = {kind: [run["learned_at"] for run in mine] for kind, mine in RUNS.items()}
    ranges = {kind: (min(steps), max(steps), len(steps)) for kind, steps in learned.items()}
    assert ranges == {"plain": (360, 620, 5), "v1": (120, 140, 5), "v2": (120, 140, 5)}
    assert results.controls(STORED) == {"v1": [None, None, None], "v2": [None, None, 480]}


@pytest.mark.parametrize(
    ("measure", "sign", "clear"),
    [
        ("numbers found", 1, {"v1": LENGTHS[1:4], "v2": LENGTHS[1:]}),
        ("attention to noise", -1, {"v1": [], "v2": LENGTHS[:4]}),
    ],
)
def test_differences_from_plain_are_clear_in_these_lengths(measure: str, sign: int, clear: dict[str, Any]) -> None:
    found = results.minus_plain(RUNS)[measure]
    assert {kind: [n for n, (mean, half) in by_length.items() if sign * mean > half]
            for kind, by_length in found.items()} == clear  # fmt: skip


def test_at_256_tokens_v2_gives_most_to_the_answer() -> None:
    (v1, half_1), (v2, half_2) = (results.minus_plain(RUNS)["attention to the answer"][k]["256"] for k in ("v1", "v2"))
    assert half_1 < v1 < v2
    assert v2 > half_2


def test_on_text_v1_fails_with_adamw_and_its_norm_alone() -> None:
    ahead = results.text_differences(TEXT_RUNS)
    assert {kind: int(np.sign(mean)) for kind, (mean, half) in ahead.items() if abs(mean) > half} == {
        "v1": 1, "v2": -1, "v1, slow": 1, "v1, no norm": -1, "v1, Muon": -1,
    }  # fmt: skip
    assert results.losses_by_step(TEXT_RUNS)["AdamW"]["v1"][100][0] > TEXT["unigram_loss"] - 0.1


@pytest.mark.parametrize(("kind", "signs"), [("v1", [-1, 0, 0, -1]), ("v2", [-1, 0, 0, 1])])
def test_maps_of_a_pair_become_opposites_while_lambda_is_positive(kind: str, signs: list[int]) -> None:
    mean, half = np.moveaxis(results.correlations(TEXT_RUNS)[kind], -1, 0)
    until_100 = TEXT["moments"].index(100) + 1
    assert mean.min() < -0.6
    assert min(np.min(run["lambda"][:until_100]) for run in TEXT_RUNS[kind]) > 0
    assert (np.sign(mean[-1]) * (abs(mean[-1]) > half[-1])).tolist() == signs


def test_the_longer_runs_end_within_what_a_repetition_changes() -> None:
    tokens, size, reached, changed = results.long_runs()
    assert abs(reached["plain"] - reached["v1"]) < changed < 0.0105
    assert 14 < size / TEXT_RUNS["v1"][0]["parameters"] < 15.5
    assert 39.5 < tokens / results.tokens_read(TEXT) < 40.5
