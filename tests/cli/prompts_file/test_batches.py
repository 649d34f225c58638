"""Several prompts in one pass: each text is the one that its prompt has alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.cli.prompts_file.batches import Answering, Task
from refdiff.cli.prompts_file.reading import Prompt

from ..conftest import copy
from .conftest import arguments

PROMPTS = ["ab", "c d efgh", "あ", "xyz!", "q", "the last of them", "ab"]


def tasks(texts: list[str] = PROMPTS) -> list[Task]:
    return [Task(Prompt(i, text), 40 + i % 6, "run") for i, text in enumerate(texts)]


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of the ids of every call of generate."""
    seen: list[tuple[int, ...]] = []
    generate = refdiff.DiffLlamaForCausalLM.generate

    def watched(self: Any, ids: Any, **options: Any) -> Any:
        seen.append(np.shape(ids))
        return generate(self, ids, **options)

    monkeypatch.setattr(refdiff.DiffLlamaForCausalLM, "generate", watched)
    return seen


@pytest.fixture(scope="module")
def float64(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint in float64, and with logits far apart, so that rounding decides nothing."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("float64") / "model")
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint, dtype="float64")
    model.params["lm_head"] = {"weight": 20 * np.asarray(model.params["model"]["embed_tokens"]["weight"])}
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        "-n 9",
        "-n 9 --temp 2 --top-p 0.9 --ignore-eos",
        "-n 7 --temp 1 --repetition-penalty 1.5 --echo",
        "-n 12 --temp 3 --stop a --stop e",
        "-n 8 --temp 3 --no-repeat-ngram-size 2",
        "-n 0 --num-beams 2 --ignore-eos",
        "-n 0 --temp 9 --ignore-eos",
        "-n 5 --chat --system s",
    ],
)
@pytest.mark.parametrize("size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 7))])
def test_texts_do_not_depend_on_the_batch(flags: str, size: int, float64: Path) -> None:
    answering = Answering(arguments(float64, *flags.split()))
    answering._model.config.max_position_embeddings = 48
    alone = [answering([task])[0] for task in tasks()]
    assert all(isinstance(result, dict) for result in alone)
    together = [result for i in range(0, len(PROMPTS), size) for result in answering(tasks()[i : i + size])]
    assert together == alone


@pytest.mark.parametrize(
    ("flags", "file", "expected"),
    [
        ("--num-beams 2 -n 0 --ignore-eos", {}, [(1, 4), (2, 3)]),
        ("--num-beams 2 -n 4", {}, [(3, 4)]),
        ("--no-repeat-ngram-size 3 -n 2", {}, [(1, 4), (2, 3)]),
        ("-n 2", {"bad_words_ids": [[5, 6]]}, [(1, 4), (2, 3)]),
        ("-n 2", {"prompt_lookup_num_tokens": 2}, [(1, 3), (1, 3), (1, 4)]),
    ],
)
def test_prompts_that_padding_would_change_are_not_padded(
    flags: str, file: dict[str, Any], expected: list[tuple[int, int]], float64: Path, shapes: list[tuple[int, ...]]
) -> None:
    answering = Answering(arguments(float64, *flags.split()))
    answering._model.config.max_position_embeddings = 12
    answering._model.generation_config = file
    answering(tasks(["ab", "abc", "cd"]))
    assert sorted(shapes) == expected


def test_frequencies_that_follow_from_the_longest_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    folder = copy(tiny_checkpoint, tmp_path, "config.json", rope_parameters=rope, max_position_embeddings=6)
    answering = Answering(arguments(folder, "-n", "4", "--dtype", "float64"))
    with pytest.warns(UserWarning, match="go beyond the context of 6 tokens"):
        together, alone = answering(tasks()), [answering([task])[0] for task in tasks()]
    assert together == alone


def test_a_batch_that_fails_is_tried_one_by_one(float64: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = Answering(arguments(float64, "-n", "3"))
    embeddings = np.array(answering._model.params["model"]["embed_tokens"]["weight"])
    embeddings[answering._tokenizer.encode("~", add_special_tokens=False)] = np.nan
    answering._model.params["model"]["embed_tokens"]["weight"] = embeddings
    with np.errstate(invalid="ignore"):
        results = answering(tasks(["ab", "a~", "cd"]))
        assert [type(result) for result in results] == [dict, str, dict]
        assert "got NaN, expected numbers" in str(results[1])
        answering._args.debug = True
        with pytest.raises(ValueError, match="got NaN, expected numbers"):
            answering(tasks(["ab", "a~", "cd"]))
