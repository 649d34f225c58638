"""Key retrieval: rows are what they say, shares are those of maps made by hand, and a run goes on where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.training import retrieval
from refdiff.training.retrieval import Experiment, draw_rows, main, mean_and_interval, measure, table, train

SMALL = Experiment(
    keys=7, values=5, fillers=3, needles=3, questions=2, train_lengths=(13, 17), lengths=(13, 29), width=16, layers=2,
    heads=2, steps=6, batch=4, rows=6,
)  # fmt: skip


@pytest.mark.parametrize("length", [10, 13, 64])
def test_every_question_has_one_needle_with_its_answer(length: int) -> None:
    rows = draw_rows(SMALL, 50, length, np.random.default_rng(1))
    assert rows.ids.shape == rows.labels.shape == (50, length)
    assert rows.haystack == length - 4
    for ids, labels, asking, needle in zip(rows.ids, rows.labels, rows.asking, rows.needle, strict=True):
        keys = np.flatnonzero(ids[: rows.haystack] < 7)
        assert len(keys) == len(set(ids[keys])) == 3
        values = ids[keys + 1]
        assert ((values >= 7) & (values < 12)).all()
        assert (ids[: rows.haystack] >= 12).sum() == rows.haystack - 6
        assert list(asking) == [length - 4, length - 2]
        assert len(set(needle)) == 2
        for ask, at in zip(asking, needle, strict=True):
            assert ids[ask] == ids[at] < 7
            assert labels[ask + 1] == ids[ask + 1] == ids[at + 1]
        assert (labels != -100).sum() == 2


def test_needles_are_everywhere_in_the_haystack() -> None:
    rows = draw_rows(SMALL, 400, 16, np.random.default_rng(2))
    assert set(rows.needle.ravel()) == set(range(11))


def test_shares_and_accuracy_of_maps_made_by_hand() -> None:
    """Head 0 gives all to the needle asked for, half of it with a minus; head 1 looks at every key alike."""

    def model(ids: np.ndarray, **_: Any) -> SimpleNamespace:
        B, T = ids.shape
        maps = np.zeros((B, 2, T, T))
        maps[:, 1] = 0.01
        logits = np.zeros((B, T, SMALL.keys + SMALL.values + SMALL.fillers))
        for b in range(B):
            for n, ask in enumerate((T - 4, T - 2)):
                at = int(np.flatnonzero(ids[b, : T - 4] == ids[b, ask])[0])
                maps[b, 0, ask, [at, at + 1]] = 3.0, -3.0
                logits[b, ask, ids[b, at + 1]] = float(n == 0)  # the first question alone is answered
        return SimpleNamespace(logits=logits, differential_attentions=(maps, maps))

    found = measure(SMALL, model, 29)  # type: ignore[arg-type]
    assert found["answer"] == pytest.approx((1 + 2 / 29) / 2)
    assert found["noise"] == pytest.approx((0 + 23 / 29) / 2)
    assert found["accuracy"] == 0.5


def test_both_wirings_learn_and_are_of_one_size() -> None:
    experiment = Experiment(**{**SMALL.__dict__, "steps": 60})
    sizes = []
    for wiring in ("hf", "none"):
        losses: list[float] = []
        model = train(experiment, wiring, 0, threads=1, report=lambda step, loss, into=losses: into.append(loss))
        vectors = 4 * 8 * 2 if wiring == "hf" else 0
        sizes.append(model.num_parameters() - vectors)
        assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert sizes[0] == sizes[1]


def test_mean_and_interval_by_hand() -> None:
    assert mean_and_interval([2.0, 4.0]) == pytest.approx((3.0, 12.706))
    assert mean_and_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 2.776 * math.sqrt(2.5 / 5)))
    assert math.isnan(mean_and_interval([1.0])[1])


def test_a_run_is_kept_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrieval, "Experiment", lambda **given: Experiment(**{**SMALL.__dict__, **given}))
    out = tmp_path / "runs.json"
    assert main(["-o", str(out), "--seeds", "1", "--steps", "4", "--threads", "1"]) == 0
    first = json.loads(out.read_text())
    assert [(run["wiring"], run["seed"]) for run in first["runs"]] == [("hf", 0), ("none", 0)]
    again: list[int] = []
    monkeypatch.setattr(retrieval, "train", lambda x, wiring, seed, **_: again.append(seed) or train(x, wiring, seed))
    assert main(["-o", str(out), "--seeds", "2", "--steps", "4"]) == 0
    assert again == [1, 1]
    both = json.loads(out.read_text())
    assert both["runs"][:2] == first["runs"]
    assert len(both["runs"]) == 4
    printed = capsys.readouterr()
    assert printed.out.endswith(table(both["runs"]) + "\n")
    assert all(len(line) <= 80 for line in printed.out.splitlines())
    assert "hf seed 0: step 4 of 4" in printed.err
    with pytest.raises(SystemExit):
        main(["-o", str(out), "--steps", "5"])
    assert "another experiment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "says"), [({"questions": 9}, "questions are 9"), ({"lengths": (11, 9)}, "a row needs 10 tokens")]
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Experiment(**{**SMALL.__dict__, **wrong})
