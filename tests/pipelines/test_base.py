"""What all pipelines share, and how `refdiff.pipeline` makes them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from tests.pipelines.models import folder_of, model_of, words

TASKS = {
    "text-generation": "DiffLlamaForCausalLM",
    "text-classification": "DiffLlamaForSequenceClassification",
    "sentiment-analysis": "DiffLlamaForSequenceClassification",
    "token-classification": "DiffLlamaForTokenClassification",
    "ner": "DiffLlamaForTokenClassification",
    "question-answering": "DiffLlamaForQuestionAnswering",
    "feature-extraction": "DiffLlamaModel",
}


@pytest.mark.parametrize("task", list(TASKS))
def test_folder_path_and_objects(task: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TASKS[task])
    inputs: Any = {"question": "a", "context": "b c"} if task == "question-answering" else "a b"
    options = {"do_sample": False, "max_new_tokens": 3} if task == "text-generation" else {}
    made = [
        refdiff.pipeline(task, model=folder),
        refdiff.pipeline(task, str(folder), local_files_only=True, kernels="fast", dtype="float32"),
        refdiff.pipeline(task, model=folder, tokenizer=folder),
        refdiff.pipeline(task, getattr(refdiff, TASKS[task]).from_pretrained(folder), str(folder)),
        refdiff.pipeline(task, getattr(refdiff, TASKS[task]).from_pretrained(folder), words()),
    ]
    results = [pipe(inputs, **options) for pipe in made]
    for result in results[1:]:
        assert result == results[0]
    assert TASKS[task] in repr(made[0])
    assert made[0].task in (task, "text-classification", "token-classification")


@pytest.mark.parametrize("task", list(TASKS))
def test_the_known_options_are_those_that_it_takes(task: str) -> None:
    made = refdiff.pipeline(task, model_of(TASKS[task]), words())
    run: Any = getattr(made, "_run_batch", made.run)
    taken = [name for name, p in inspect.signature(run).parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert list(made.known[: len(taken)]) == taken
    assert task == "text-generation" or len(made.known) == len(taken)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("text-generatoin", "did you mean 'text-generation'"),
        ("translation", "unknown: (did you mean|the known ones)"),
        ("zzz", "the known ones are text-generation"),
        (None, "unknown"),
    ],
)
def test_unknown_tasks(task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refdiff.pipeline(task, model="folder")


def test_wrong_pieces() -> None:
    model = model_of("DiffLlamaForCausalLM")
    with pytest.raises(TypeError, match="needs tokenizer="):
        refdiff.pipeline("text-generation", model=model)
    with pytest.raises(
        TypeError, match="text-classification needs a DiffLlamaForSequenceClassification, but got a Diff"
    ):
        refdiff.pipeline("text-classification", model=model, tokenizer=words())
    with pytest.raises(TypeError, match="text-generation needs a DiffLlamaForCausalLM, but got a NoneType"):
        refdiff.pipeline("text-generation", model=None)
    with pytest.raises(TypeError, match="tokenizer: got int, expected a Tokenizer, or the folder or repo of one"):
        refdiff.pipeline("text-generation", model=model, tokenizer=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype: the model is loaded already"):
        refdiff.pipeline("text-generation", model=model, tokenizer=words(), dtype="float32")
    with pytest.raises(TypeError, match="revision: the model is loaded already"):
        refdiff.pipeline("text-generation", model=model, tokenizer=words(), revision="main")


def test_unknown_options() -> None:
    model = model_of("DiffLlamaModel")
    with pytest.raises(TypeError, match="feature-extraction has no option 'truncate': did you mean 'truncation'"):
        refdiff.pipeline("feature-extraction", model=model, tokenizer=words(), truncate=True)
    pipe = refdiff.pipeline("feature-extraction", model=model, tokenizer=words())
    with pytest.raises(TypeError, match="the known ones are return_tensors, truncation"):
        pipe("a", zzz=1)


def test_lists_and_iterators() -> None:
    pipe = refdiff.pipeline("feature-extraction", model=model_of("DiffLlamaModel"), tokenizer=words())
    one = pipe("a b")
    assert pipe(["a b", "a b"]) == [one, one]
    lazy = pipe(text for text in ["a b", 5])
    assert next(lazy) == one
    with pytest.raises(TypeError):
        next(lazy)
    assert pipe([]) == []


def test_options_of_the_call_win(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "DiffLlamaModel")
    pipe = refdiff.pipeline("feature-extraction", folder, dtype="float64", return_tensors=True)
    assert pipe("a").dtype == np.float64, "the model's dtype"
    assert isinstance(pipe("a", return_tensors=False), list)
