"""Pipelines against transformers' on the same folders: same keys, same nesting, same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import refdiff
from tests.generation.trained_tokenizers import KINDS, TEXTS, save

CONFIG = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_input_names": ["input_ids", "attention_mask"],
}  # fmt: skip
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "東京は?"}]
PREFILL = [*CHAT, {"role": "assistant", "content": "It is"}]

pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")


def write(folder: Path, architecture: str, kind: str = "byte_level", tokenizer: Any = None, **config: Any) -> Path:
    """A tiny model whose outputs differ clearly from token to token."""
    backend = KINDS[kind]()
    save(folder, backend, tokenizer_config={**CONFIG, **(tokenizer or {})})
    torch.manual_seed(3)
    settings = transformers.DiffLlamaConfig(
        vocab_size=backend.get_vocab_size() + 2, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, **config,
    )  # fmt: skip
    getattr(transformers, architecture)(settings).save_pretrained(folder)
    return folder


def both(task: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    return transformers.pipeline(task, model=str(folder), **options), refdiff.pipeline(task, model=folder, **options)


def same(expected: Any, actual: Any) -> None:
    """Equal in structure, keys, text and integers; floats to 1e-4 (float32 through two layers)."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name, value in expected.items():
            same(value, actual[name])
    elif isinstance(expected, list | tuple):
        assert isinstance(actual, list | tuple)
        assert len(actual) == len(expected)
        for left, right in zip(expected, actual, strict=True):
            same(left, right)
    elif isinstance(expected, float | np.floating):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    else:
        assert actual == expected


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    tokenizer = {"pad_token": "</s>", "chat_template": CHAT_TEMPLATE, "model_max_length": 60}
    folder = write(tmp_path_factory.mktemp("causal"), "DiffLlamaForCausalLM", tokenizer=tokenizer)
    return both("text-generation", folder)


GREEDY = {"do_sample": False, "max_new_tokens": 8}
INPUTS: dict[str, Any] = {
    "text": TEXTS[0],
    "Japanese": TEXTS[1],
    "list": TEXTS[:3],
    "list of one": TEXTS[:1],
    "empty": "",
    "chat": CHAT,
    "chats": [CHAT, CHAT[1:]],
    "prefill": PREFILL,
    "mixed ends": [CHAT, PREFILL],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"return_full_text": False},
    {"return_full_text": True},
    {"return_tensors": True},
    {"num_beams": 3, "num_return_sequences": 2},
    {"skip_special_tokens": False},
    {"continue_final_message": False},
    {"tools": [{"name": "t"}]},
]


@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_text_generation(causal: tuple[Any, Any], name: str, options: dict[str, Any]) -> None:
    theirs, ours = causal
    same(theirs(INPUTS[name], **GREEDY, **options), ours(INPUTS[name], **GREEDY, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": "Once. "},
        {"add_special_tokens": False},
        {"max_new_tokens": 50, "handle_long_generation": "hole"},
        {"stop_sequence": "n"},
        {"stop_sequence": ["n", "e"]},
        {"truncation": True, "tokenizer_encode_kwargs": {"max_length": 6}},
        {"tokenizer_encode_kwargs": {"add_special_tokens": False}},
        {"clean_up_tokenization_spaces": True},
        {"min_new_tokens": 4, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_text_generation_of_plain_text(causal: tuple[Any, Any], options: dict[str, Any]) -> None:
    theirs, ours = causal
    for text in (TEXTS[0], TEXTS[3] + TEXTS[0]):
        same(theirs(text, **{**GREEDY, **options}), ours(text, **{**GREEDY, **options}))


def test_batches_and_generators(causal: tuple[Any, Any]) -> None:
    theirs, ours = causal
    expected = theirs(TEXTS, **GREEDY)
    for size in (1, 2, 5, 99):
        same(expected, ours(TEXTS, batch_size=size, **GREEDY))
    same(theirs([CHAT, CHAT[1:]], **GREEDY), ours([CHAT, CHAT[1:]], batch_size=2, **GREEDY))
    same(*(list(pipeline((text for text in TEXTS[:3]), **GREEDY)) for pipeline in causal))


@pytest.mark.parametrize(
    "in_file",
    [
        {"do_sample": False, "max_new_tokens": 5},
        {"do_sample": False, "max_length": 40},
        {"do_sample": True, "top_k": 1, "temperature": 0.1, "pad_token_id": 4},
    ],
    ids=str,
)
def test_defaults_yield_to_generation_config(tmp_path: Path, in_file: dict[str, Any]) -> None:
    folder = write(tmp_path, "DiffLlamaForCausalLM")
    transformers.GenerationConfig(eos_token_id=2, **in_file).save_pretrained(folder)
    theirs, ours = both("text-generation", folder)
    same(theirs(TEXTS[0]), ours(TEXTS[0]))
    same(theirs(TEXTS[0], max_new_tokens=3), ours(TEXTS[0], max_new_tokens=3))


def test_the_sampling_defaults_are_the_same(causal: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = causal
    seen: list[dict[str, Any]] = []

    def record(self: Any = None, input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
        seen.append(options)
        return input_ids

    monkeypatch.setattr(theirs.model, "generate", record)
    monkeypatch.setattr(ours.model, "generate", lambda ids, **options: record(None, ids, **options))
    for options in ({}, {"do_sample": False}, {"max_length": 9}, {"temperature": 0.2}, {"pad_token_id": 0}):
        theirs("a", **options)
        ours("a", **options)
        expected, actual = seen[-2:]
        assert {name: value for name, value in expected.items() if name != "generation_config"} == actual


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 1},
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        {"num_labels": 2, "problem_type": "regression"},
        {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}},
    ],
    ids=str,
)
def test_text_classification(tmp_path: Path, config: dict[str, Any]) -> None:
    theirs, ours = both("text-classification", write(tmp_path, "DiffLlamaForSequenceClassification", **config))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[2]}
    for inputs in (TEXTS[0], TEXTS[:3], TEXTS[:1], pair, [pair, {"text": TEXTS[1]}]):
        same(theirs(inputs), ours(inputs))
        for function in ("sigmoid", "softmax", "none", "SOFTMAX"):
            same(theirs(inputs, function_to_apply=function), ours(inputs, function_to_apply=function))
        for top_k in (None, 1, 2):
            same(theirs(inputs, top_k=top_k), ours(inputs, top_k=top_k))
    for pipe in (theirs, ours):
        pipe.tokenizer.pad_token = "</s>"
    given: dict[str, Any] = {"truncation": True, "max_length": 5}
    assert theirs(TEXTS[0], **given) != theirs(TEXTS[0])
    for options in (given, {"tokenizer_kwargs": given}, {"padding": "max_length", "max_length": 40}, {"padding": True}):
        same(theirs(TEXTS[0], **options), ours(TEXTS[0], **options))
    same(theirs(TEXTS[0], add_special_tokens=False), ours(TEXTS[0], add_special_tokens=False))
    for size in (2, 3):
        same(theirs(TEXTS, batch_size=size), ours(TEXTS, batch_size=size))
    theirs, ours = both("sentiment-analysis", tmp_path, top_k=None)
    same(theirs(TEXTS[0]), ours(TEXTS[0]))
    same(theirs(TEXTS[:2]), ours(TEXTS[:2]))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max", "MAX", None])
def test_token_classification(tmp_path: Path, kind: str, strategy: str | None) -> None:
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    tokenizer = {"model_max_length": 40, "pad_token": "</s>"}
    folder = write(tmp_path, "DiffLlamaForTokenClassification", kind, tokenizer=tokenizer, **labels)
    options = {} if strategy is None else {"aggregation_strategy": strategy}
    theirs, ours = both("ner", folder, **options)
    for size in (1, 2, 3):
        same(theirs(TEXTS, batch_size=size), ours(TEXTS, batch_size=size))
    for text in TEXTS:
        for ignored in ([], ["O", "MISC"], ["PER"]):
            same(theirs(text, ignore_labels=ignored), ours(text, ignore_labels=ignored))
    words = [text.split() for text in (TEXTS[0], TEXTS[3])]
    for split in (words[0], words):
        for delimiter in (" ", "\n--", None):
            given: dict[str, Any] = {"is_split_into_words": True, "delimiter": delimiter}
            same(theirs(split, **given), ours(split, **given))
    if strategy not in (None, "none"):
        text = "".join(TEXTS)
        for stride in (0, 5, 20):
            same(theirs(text, stride=stride), ours(text, stride=stride))


@pytest.mark.parametrize("architecture", ["DiffLlamaModel", "DiffLlamaForCausalLM"])
def test_feature_extraction(tmp_path: Path, architecture: str) -> None:
    folder = write(tmp_path, architecture, tokenizer={"model_max_length": 9})
    theirs, ours = both("feature-extraction", folder)
    for inputs in (TEXTS[0], TEXTS[:2]):
        same(theirs(inputs), ours(inputs))
        same(theirs(inputs, truncation=True), ours(inputs, truncation=True))
        options = {"tokenize_kwargs": {"add_special_tokens": False}}
        same(theirs(inputs, **options), ours(inputs, **options))
    expected, actual = theirs(TEXTS[0], return_tensors=True), ours(TEXTS[0], return_tensors=True)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-5)
