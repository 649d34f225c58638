"""Key retrieval: what a sequence holds, shares of maps made by hand, and a run that resumes where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from experiments import retrieval
from experiments.retrieval import QUICK, Experiment, draw_sequences, main, measure, train
from experiments.retrieval_table import depth_table, table

SMALL = Experiment(
    keys=7, values=5, fillers=3, spacing=4, questions=2, train_lengths=(13, 17), lengths=(13, 29), width=16, layers=2,
    heads=2, steps=6, begin=3, tokens=53, rows=6,
)  # fmt: skip


@pytest.mark.parametrize(("length", "needles"), [(9, 2), (13, 3), (29, 7)])
def test_every_question_has_one_needle_with_its_answer(length: int, needles: int) -> None:
    drawn = draw_sequences(SMALL, 50, length, np.random.default_rng(1))
    assert drawn.ids.shape == drawn.labels.shape == (50, length)
    assert drawn.haystack == length - 3
    for ids, labels, question, needle in zip(drawn.ids, drawn.labels, drawn.question, drawn.needle, strict=True):
        keys = np.flatnonzero(ids[: drawn.haystack] < 7)
        assert len(keys) == len(set(ids[keys])) == needles
        values = ids[keys + 1]
        assert ((values >= 7) & (values < 12)).all()
        assert (ids[: drawn.haystack] >= 12).sum() == drawn.haystack - 2 * needles
        assert list(question) == [length - 3, length - 2]
        assert len(set(needle)) == 2
        for ask, at in zip(question, needle, strict=True):
            assert ids[ask] == ids[at] < 7
            assert labels[ask + 1] == ids[at + 1]
        assert (labels != -100).sum() == 2
        assert ids[-1] >= 12


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
    needles = np.concatenate([draw_sequences(SMALL, 1, 29, rng).needle for _ in range(6)])
    assert needles.max() == 24, "of a needle at the end no token stands behind the value"
    n = np.minimum(26 - needles, 3).mean()  # tokens of the needle: its key, its value, and the one behind them
    flat = np.array([n, 26 - n]) / 29  # of a sequence of 29, with a haystack of 26
    assert found["heads"]["answer"] == pytest.approx(np.array([[1, flat[0]], [flat[0], 0]]))
    n2 = (needles + 2 < 26).mean() / 29
    assert found["heads"]["behind"] == pytest.approx(np.array([[0, n2], [n2, 0]]))
    assert found["heads"]["noise"] == pytest.approx(np.array([[0, flat[1]], [flat[1], 0]]))
    assert [found["answer"], found["noise"]] == pytest.approx((np.array([1, 0]) + 2 * flat) / 4)
    everything = 0 + 0.29 + 25 + 1
    assert found["net answer"] == pytest.approx((0 + 0.01 * n - 2 + (n - 2)) / everything)
    assert found["net noise"] == pytest.approx((0.01 + 1) * (26 - n) / everything)


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


def test_stored_runs_are_kept_and_seeds_added(
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
    monkeypatch.setattr(
        retrieval, "train", lambda x, wiring, seed, **options: again.append(seed) or train(x, wiring, seed, **options)
    )
    assert main([*options, "--seeds", "2"]) == 0
    assert again == [1, 1, 1]
    both = json.loads(out.read_text())
    assert both["runs"][:3] == first["runs"]
    assert len(both["runs"]) == 6
    printed = capsys.readouterr()
    assert printed.out.endswith(f"{table(both['runs'])}\n\n{depth_table(both['runs'], 13)}\n")
    assert "hf seed 0: step 4 of 4" in printed.err
    assert main([*options, "--seeds", "2", "--controls"]) == 0
    controlled = json.loads(out.read_text())
    assert controlled["runs"] == both["runs"]
    assert [(run["wiring"], run["seed"]) for run in controlled["controls"]] == [
        ("hf", 0),
        ("v2", 0),
        ("hf", 1),
        ("v2", 1),
    ]
    assert all(len(run["losses"]) == 2 for run in controlled["controls"])
    assert "v2 with λ = 0 seed 1: step 2 of 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["-o", str(out), "--quick", "--steps", "5"])
    assert "another experiment" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("wiring", ["hf", "none"])
def test_the_quick_experiment_is_learned(wiring: str) -> None:
    """What the experiment claims has a meaning only where models find their keys."""
    assert measure(QUICK, train(QUICK, wiring, 0, threads=1), 16)["accuracy"] > 0.9
