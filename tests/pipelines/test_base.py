"""What all pipelines share, and how `refdiff.pipeline` makes them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.generation.options import NAMES
from tests.pipelines.models import folder_of, model_of, words

TASKS = {
    "text-generation": "DiffLlamaForCausalLM",
    "text-classification": "DiffLlamaForSequenceClassification",
    "sentiment-analysis": "DiffLlamaForSequenceClassification",
    "token-classification": "DiffLlamaForTokenClassification",
    "ner": "DiffLlamaForTokenClassification",
    "feature-extraction": "DiffLlamaModel",
}


@pytest.mark.parametrize("task", list(TASKS))
def test_folder_path_and_objects(task: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TASKS[task])
    options = {"do_sample": False, "max_new_tokens": 3} if task == "text-generation" else {}
    made = [
        refdiff.pipeline(task, model=folder),
        refdiff.pipeline(task, str(folder), local_files_only=True, kernels="fast", dtype="float32"),
        refdiff.pipeline(task, getattr(refdiff, TASKS[task]).from_pretrained(folder), words()),
    ]
    results = [pipe("a b", **options) for pipe in made]
    for result in results[1:]:
        assert result == results[0]
    assert made[0].device == made[0].model.device
    assert made[0].task in (task, "text-classification", "token-classification")


OPTIONS = {
    "text-classification": "top_k, function_to_apply, tokenizer_kwargs, truncation, padding, add_special_tokens, "
    "max_length, padding_side, stride",
    "token-classification": "aggregation_strategy, ignore_labels, stride, is_split_into_words, delimiter",
    "feature-extraction": "return_tensors, truncation, tokenize_kwargs",
    "text-generation": "return_full_text, return_text, return_tensors, prefix, stop_sequence, handle_long_generation, "
    "clean_up_tokenization_spaces, skip_special_tokens, continue_final_message, tools, documents, "
    f"tokenizer_encode_kwargs, truncation, padding, add_special_tokens, {', '.join(NAMES)}, generation_config, seed, "
    "generator, streamer",
}


@pytest.mark.parametrize("task", OPTIONS)
def test_an_unknown_option_is_refused_with_the_known_ones(task: str) -> None:
    message = f"{task}: got an unknown option 'zzz', expected a known one among {OPTIONS[task]}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        refdiff.pipeline(task, model_of(TASKS[task]), words(), zzz=1)


MODEL = model_of("DiffLlamaForCausalLM")


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("text-generatoin", {}, ValueError, "did you mean 'text-generation'"),
        ("zzz", {}, ValueError, "expected one of text-generation"),
        (None, {}, ValueError, "task: got None, expected one of text-generation"),
        ("text-generation", {}, TypeError, "tokenizer: got None"),
        (
            "text-classification",
            {"tokenizer": words()},
            TypeError,
            "got DiffLlamaForCausalLM, expected DiffLlamaForSequenceClass",
        ),
        (
            "text-generation",
            {"model": None},
            TypeError,
            "model: got NoneType, expected DiffLlamaForCausalLM for text-generation",
        ),
        ("text-generation", {"tokenizer": 5}, TypeError, "tokenizer: got int, expected a Tokenizer"),
        ("text-generation", {"tokenizer": words(), "dtype": "float32"}, TypeError, "loaded already"),
        ("text-generation", {"tokenizer": words(), "prefx": "a"}, TypeError, "did you mean 'prefix'"),
    ],
)
def test_invalid_arguments_of_pipeline_are_refused(
    task: str | None, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        refdiff.pipeline(task, **{"model": MODEL, **options})


def test_lists_and_iterators() -> None:
    pipe = refdiff.pipeline("feature-extraction", model=model_of("DiffLlamaModel"), tokenizer=words())
    one = pipe("a b")
    assert pipe(["a b", "a b"]) == [one, one]
    lazy = pipe(text for text in ["a b", 5])
    assert next(lazy) == one
    with pytest.raises(TypeError):
        next(lazy)
    assert pipe([]) == []


def test_a_folder_is_loaded_with_any_option_of_from_pretrained(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "DiffLlamaModel")
    parameters = inspect.signature(refdiff.DiffLlamaModel.from_pretrained).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert refdiff.pipeline("feature-extraction", folder, **{**options, "threads": 1})("a")
    assert refdiff.pipeline("feature-extraction", folder, config=str(folder))("a")
    given = {"low_cpu_mem_usage": True, "use_safetensors": True, "device": "cpu", "num_labels": 3}
    assert refdiff.pipeline("feature-extraction", folder, model_kwargs=given).model.config.num_labels == 3
    with pytest.raises(TypeError, match=r"DiffLlamaModel.from_pretrained: got an unexpected argument 'zzz'"):
        refdiff.pipeline("feature-extraction", folder, model_kwargs={"zzz": 1})


def test_options_of_the_call_win(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "DiffLlamaModel")
    pipe = refdiff.pipeline("feature-extraction", folder, dtype="float64", return_tensors=True)
    assert pipe("a").dtype == np.float64, "the model's dtype"
    assert isinstance(pipe("a", return_tensors=False), list)


def close(actual: Any, expected: Any) -> None:
    """Equal, numbers up to rounding errors."""
    if isinstance(expected, dict):
        actual, expected = [*actual, *actual.values()], [*expected, *expected.values()]
    if isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            close(one, other)
    else:
        assert actual == (pytest.approx(expected, abs=1e-12) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("task", [task for task in TASKS if task != "text-generation"])
def test_the_model_reads_as_many_texts_at_once_as_batch_size_says(
    task: str, side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, TASKS[task])
    pipe = refdiff.pipeline(task, folder, dtype="float64", batch_size=3)
    pipe.tokenizer.padding_side = side
    inputs = ["a b", "c", "b d c a", "d", "a c b"]
    expected = [pipe(item) for item in inputs]
    read: list[int] = []
    call = type(pipe.model).__call__

    def count(self: Any, input_ids: Any, **more: Any) -> Any:
        read.append(len(input_ids))
        return call(self, input_ids, **more)

    monkeypatch.setattr(type(pipe.model), "__call__", count)
    if task in ("text-classification", "sentiment-analysis"):  # a list of one for one text
        expected = [result[0] for result in expected]
    close(pipe(inputs), expected)
    close(list(pipe(iter(inputs), batch_size=2)), expected)
    assert read == [3, 2, 2, 2, 1]
    pipe.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad_token: got None"):
        pipe(inputs)


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("device", [-1, "cpu", None])
def test_options_of_transformers_that_change_no_result(task: str, device: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, TASKS[task])
    inputs = ["a b", "c"]
    options = {"do_sample": False, "max_new_tokens": 3} if task == "text-generation" else {}
    expected = refdiff.pipeline(task, folder, dtype="float64")(inputs, **options)
    more: dict[str, Any] = {"batch_size": 2, "num_workers": 4}
    pipe = refdiff.pipeline(task, folder, device=device, model_kwargs={"dtype": "float64"}, **more)
    close(pipe(inputs, **options, **more), expected)
    with pytest.raises(ValueError, match="batch_size: got 0, expected"):
        pipe(inputs, batch_size=0)
