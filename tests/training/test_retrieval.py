"""Key retrieval: rows are what they say, shares are those of maps made by hand, and a run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.training import retrieval
from refdiff.training.retrieval import QUICK, Experiment, draw_rows, main, measure, train
from refdiff.training.retrieval_table import depth_table, table

SMALL = Experiment(
    keys=7, values=5, fillers=3, spacing=4, questions=2, train_lengths=(13, 17), lengths=(13, 29), width=16, layers=2,
    heads=2, steps=6, begin=3, tokens=53, rows=6,
)  # fmt: skip


@pytest.mark.parametrize(("length", "needles"), [(9, 2), (13, 3), (29, 7)])
def test_every_question_has_one_needle_with_its_answer(length: int, needles: int) -> None:
    rows = draw_rows(SMALL, 50, length, np.random.default_rng(1))
    assert rows.ids.shape == rows.labels.shape == (50, length)
    assert rows.haystack == length - 3
    for ids, labels, asking, needle in zip(rows.ids, rows.labels, rows.asking, rows.needle, strict=True):
        keys = np.flatnonzero(ids[: rows.haystack] < 7)
        assert len(keys) == len(set(ids[keys])) == needles
        values = ids[keys + 1]
        assert ((values >= 7) & (values < 12)).all()
        assert (ids[: rows.haystack] >= 12).sum() == rows.haystack - 2 * needles
        assert list(asking) == [length - 3, length - 2]
        assert len(set(needle)) == 2
        for ask, at in zip(asking, needle, strict=True):
            assert ids[ask] == ids[at] < 7
            assert labels[ask + 1] == ids[at + 1]
        assert (labels != -100).sum() == 2
        assert ids[-1] >= 12


def test_needles_are_everywhere_in_the_haystack() -> None:
    rows = draw_rows(SMALL, 400, 16, np.random.default_rng(2))
    assert set(rows.needle.ravel()) == set(range(12))


def test_keys_are_asked_too_behind_every_needle() -> None:
    alone, both = (draw_rows(SMALL, 50, 13, np.random.default_rng(3), keys_too=keys_too) for keys_too in (False, True))
    np.testing.assert_array_equal(both.ids, alone.ids)
    more = both.labels != alone.labels
    assert (more.sum(axis=1) == 3).all()
    for row, at in zip(*np.nonzero(more), strict=True):
        assert both.labels[row, at] == both.ids[row, at - 2] < 7
        assert 7 <= both.ids[row, at - 1] < 12


def looks(ids: np.ndarray, **_: Any) -> SimpleNamespace:
    """Layer 0: a head that gives all to the needle asked for, half of it with a minus, and one that looks at every key
    alike. Layer 1: a head whose weights on all of a row are 1, but for −1 on the needle, and one that is 0 but at 0."""
    B, T = ids.shape
    first, second = np.zeros((B, 2, T, T)), np.zeros((B, 2, T, T))
    first[:, 1], second[:, 0], second[:, 1, :, 0] = 0.01, 1.0, 1.0
    logits = np.zeros((B, T, SMALL.keys + SMALL.values + SMALL.fillers))
    for b in range(B):
        for n, ask in enumerate((T - 3, T - 2)):
            at = int(np.flatnonzero(ids[b, : T - 3] == ids[b, ask])[0])
            first[b, 0, ask, [at, at + 1]] = 3.0, -3.0
            second[b, 0, ask, [at, at + 1]] = -1.0
            second[b, 1, ask, 0], second[b, 1, ask, T - 1] = 0.0, 1.0
            logits[b, ask, ids[b, at + 1]] = float(n == 0)  # the first question alone is answered
    return SimpleNamespace(logits=logits, differential_attentions=(first, second))


def test_shares_and_accuracy_of_maps_made_by_hand() -> None:
    found = measure(SMALL, looks, 29, seed=4)  # type: ignore[arg-type]
    assert found["accuracy"] == 0.5
    rng = np.random.default_rng((4, 1, 29))
    needles = np.concatenate([draw_rows(SMALL, 1, 29, rng).needle for _ in range(6)])
    assert needles.max() == 24, "of a needle at the end no token stands behind the value"
    n = np.minimum(26 - needles, 3).mean()  # tokens of the needle: its key, its value, and the one behind them
    flat = np.array([n, 26 - n]) / 29  # of a row of 29, with a haystack of 26
    assert found["heads"]["answer"] == pytest.approx(np.array([[1, flat[0]], [flat[0], 0]]))
    n2 = (needles + 2 < 26).mean() / 29
    assert found["heads"]["behind"] == pytest.approx(np.array([[0, n2], [n2, 0]]))
    assert found["heads"]["noise"] == pytest.approx(np.array([[0, flat[1]], [flat[1], 0]]))
    assert [found["answer"], found["noise"]] == pytest.approx((np.array([1, 0]) + 2 * flat) / 4)
    everything = 0 + 0.29 + 25 + 1
    assert found["net answer"] == pytest.approx((0 + 0.01 * n - 2 + (n - 2)) / everything)
    assert found["net noise"] == pytest.approx((0.01 + 1) * (26 - n) / everything)


def test_means_by_depth_by_hand() -> None:
    experiment = Experiment(**{**SMALL.__dict__, "rows": 40})
    depths = measure(experiment, looks, 29)["depths"]  # type: ignore[arg-type]
    rows = draw_rows(experiment, 1, 29, np.random.default_rng((0, 1, 29)))  # batches of one row: 29 of 53 tokens
    assert depths["answer"][:4] == pytest.approx([(1 + 2 * 3 / 29) / 4] * 4)
    assert depths["noise"][:4] == pytest.approx([2 * 23 / 29 / 4] * 4)
    assert (1 + 2 * 2 / 29) / 4 < depths["answer"][4] < (1 + 2 * 3 / 29) / 4, "some needles end the haystack"
    assert set(np.rint(rows.needle / 24 * 4).ravel()) <= set(range(5))
    assert len(set(depths["accuracy"])) > 1


def test_a_depth_without_a_needle_has_no_mean() -> None:
    one = Experiment(**{**SMALL.__dict__, "rows": 1})
    found = measure(one, looks, 29)  # type: ignore[arg-type]
    assert found["depths"]["answer"].count(None) >= 3


def test_all_wirings_learn_and_are_of_one_size() -> None:
    experiment = Experiment(**{**SMALL.__dict__, "steps": 60, "begin": 40})
    sizes = []
    for wiring in ("hf", "v2", "none"):
        losses: list[float] = []
        model = train(experiment, wiring, 0, threads=1, report=lambda step, loss, into=losses: into.append(loss))
        vectors = 4 * 8 * 2 if wiring == "hf" else 0
        sizes.append(model.num_parameters() - vectors)
        assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert sizes[0] == sizes[1] == sizes[2]


def test_keys_are_asked_in_the_first_rows_then_lengths_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int, bool]] = []

    def watched(x: Experiment, count: int, length: int, rng: np.random.Generator, keys_too: bool) -> retrieval.Rows:
        drawn.append((count, length, keys_too))
        return draw_rows(x, count, length, rng, keys_too=keys_too)

    monkeypatch.setattr(retrieval, "draw_rows", watched)
    train(SMALL, "none", 0, threads=1)
    assert drawn == [(4, 13, True)] * 3 + [(3, 17, False), (4, 13, False), (3, 17, False)]


def test_the_rate_is_constant_on_short_rows_and_falls_after() -> None:
    experiment = Experiment(steps=300, begin=200, rate=0.5)
    rates = [experiment.rate_at(step) for step in range(300)]
    assert rates[0] == 0.01
    assert set(rates[49:201]) == {0.5}
    assert (np.diff(rates[200:]) < 0).all()
    assert rates[-1] == pytest.approx(0.05, rel=0.01)


def test_a_run_is_kept_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrieval, "QUICK", SMALL)
    out = tmp_path / "runs.json"
    options = ["-o", str(out), "--quick", "--steps", "4"]
    assert main(options) == 0
    first = json.loads(out.read_text())
    assert first["experiment"]["begin"] == 2
    assert [(run["wiring"], run["seed"]) for run in first["runs"]] == [("hf", 0), ("none", 0), ("v2", 0)]
    again: list[int] = []
    monkeypatch.setattr(retrieval, "train", lambda x, wiring, seed, **_: again.append(seed) or train(x, wiring, seed))
    assert main([*options, "--seeds", "2"]) == 0
    assert again == [1, 1, 1]
    both = json.loads(out.read_text())
    assert both["runs"][:3] == first["runs"]
    assert len(both["runs"]) == 6
    printed = capsys.readouterr()
    assert printed.out.endswith(f"{table(both['runs'])}\n\n{depth_table(both['runs'], 13)}\n")
    assert "hf seed 0: step 4 of 4" in printed.err
    with pytest.raises(SystemExit):
        main(["-o", str(out), "--quick", "--steps", "5"])
    assert "another experiment" in capsys.readouterr().err


@pytest.mark.slow
def test_jobs_change_no_number(tmp_path: Path) -> None:
    for jobs in ("1", "2"):
        assert main(["-o", str(tmp_path / jobs), "--quick", "--steps", "2", "--jobs", jobs]) == 0
    assert json.loads((tmp_path / "1").read_text()) == json.loads((tmp_path / "2").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("wiring", ["hf", "none"])
def test_the_quick_experiment_is_learned(wiring: str) -> None:
    """What the experiment claims has a meaning only where models find their keys."""
    assert measure(QUICK, train(QUICK, wiring, 0, threads=1), 16)["accuracy"] > 0.9


def test_the_longest_rows_that_training_knows() -> None:
    assert SMALL.longest == 13
    assert Experiment(**{**SMALL.__dict__, "lengths": (23, 29)}).longest == 23


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"questions": 0}, "questions: got 0, expected 1 or more"),
        ({"lengths": (11, 3)}, "a row of 3 tokens with spacing 4 has 0 needles, .* 4 tokens or more"),
        ({"spacing": 2}, "a row of 13 tokens with spacing 2 has 6 needles, .* 15 tokens or more"),
        ({"lengths": (11, 32)}, "has 8 needles, but must have from 1 to 7"),
        ({"tokens": 16}, "a step has 16 tokens, but a row of 17"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Experiment(**{**SMALL.__dict__, **wrong})
