"""Each library as it is measured: refdiff does what calls of a user do; others do the same, or say what is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff import oracle
from refdiff.backends.numpy.thread_pool import Workers
from refdiff.backends.numpy.tuning import Tuning
from refdiff.bench.inputs import edited, random_ids, repetition
from refdiff.bench.machine import UnavailableError
from refdiff.bench.peers import NumpySide, OnnxRuntimeSide, TransformersSide
from refdiff.bench.refdiff_side import OracleSide, RefdiffSide, StoredSide
from refdiff.bench.side import LOOKUP_PROMPT, Settings
from refdiff.model.cache import KVCache


def _side(folder: Path, **settings: int) -> RefdiffSide:
    side = RefdiffSide(Settings(str(folder), **settings))  # type: ignore[arg-type]
    assert side.load()["seconds"] > 0
    return side


def test_tokens_are_those_of_generate(tiny_checkpoint: Path) -> None:
    side = _side(tiny_checkpoint, steps=3)
    ids = random_ids(2, 9, side.vocab_size)
    made = side.model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    expected = made[:, 9:].tolist()
    first = side.decode(9, 2)
    assert first["tokens"] == expected
    assert first["seconds"] > 0
    assert side.decode(9, 2, steps=2)["tokens"] == [row[:3] for row in expected], "the cache was not rewound"
    read = side.prefill(9, 2)
    assert read["tokens"] == [row[0] for row in expected]
    assert read["sparing"], "of the last layer it computes what the next token needs"
    answer = RefdiffSide(side.settings).memory(size=9, batch=2)
    assert answer["tokens"] == expected
    assert answer["bytes"] > 10_000_000


@pytest.mark.parametrize("edit", [False, True])
def test_lookup_repeats_its_prompt_in_few_passes(
    edit: bool, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side, calls = _side(tiny_checkpoint, looked_up=50), []
    forward = type(side.model).__call__

    def counted(self: object, ids: np.ndarray, **given: object) -> object:
        calls.append(ids.shape[1])
        return forward(self, ids, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(side.model), "__call__", counted)
    answer = side.edit() if edit else side.lookup()
    text = (edited if edit else repetition)(LOOKUP_PROMPT, 51, side.vocab_size)[1]
    assert answer["tokens"] == [text.tolist()]
    assert answer["passes"] == len(calls) - 1, "all but the first, which reads the prompt"
    assert answer["passes"] <= (50 / 2 if edit else 50 / 5)
    assert calls[0] == LOOKUP_PROMPT


@pytest.mark.parametrize("size", [9, 300])
def test_the_cache_is_as_large_as_that_of_generate(
    size: int, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = _side(tiny_checkpoint, steps=5)
    caches: list[KVCache] = []
    made = KVCache.__init__

    def noted(self: KVCache, *given: object, **options: object) -> None:
        caches.append(self)
        made(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(KVCache, "__init__", noted)
    side.decode(size, 2, steps=1)
    side.decode(size, 2)
    ids = random_ids(2, size, side.vocab_size)
    side.model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    ours, theirs = caches
    assert [x.shape for x in ours.buffers] == [x.shape for x in theirs.buffers]


def test_a_product_of_one_token_is_multiplied_as_in_a_pass_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLAS has all its threads then, where these are many, and those of Python have the cores otherwise."""
    seen: list[bool] = []
    running = Workers.running

    def noted(self: Workers, *, owns_cores: bool = True) -> Any:
        seen.append(owns_cores)
        return running(self, owns_cores=owns_cores)

    monkeypatch.setattr(Workers, "running", noted)
    monkeypatch.setattr("refdiff.bench.side.CACHES", 1)
    for size in (1, 4):
        RefdiffSide(Settings(None, Tuning.python_threads + 1, least=0)).product(size, (2048, 2048))
    assert seen == [False, True]


def test_weights_of_sixteen_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`stored` keeps them; --dtype bfloat16 does too, and refuses a checkpoint that has another type."""
    refdiff.DiffLlamaForCausalLM.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path, dtype="bfloat16")
    answers = []
    for kind, dtype, nbytes in ((RefdiffSide, "float32", 4), (StoredSide, "float32", 2), (RefdiffSide, "bfloat16", 2)):
        side = kind(Settings(str(tmp_path), 1, dtype, steps=3))
        side.load()
        assert side.model.params["model"]["layers"][0]["mlp"]["gate_proj"]["weight"].dtype.itemsize == nbytes
        answers.append(side.decode(9, 2))
        assert answers[-1]["itemsize"] == nbytes
    assert answers[0]["tokens"] == answers[1]["tokens"]
    said = "--dtype bfloat16 measures matrices as they are stored, but here they are float32"
    with pytest.raises(ValueError, match=said):
        RefdiffSide(Settings(str(tiny_checkpoint), 1, "bfloat16")).load()


@pytest.mark.parametrize("do", ["check", "diagnose"])
def test_the_oracle_must_give_the_answer_that_it_should(do: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert getattr(OracleSide(Settings()), do)(size=23, batch=2)["seconds"] > 0
    if do == "check":
        monkeypatch.setattr(oracle, "check", oracle.diagnose)
        with pytest.raises(ValueError, match="the oracle: got no deviation, expected pass"):
            OracleSide(Settings()).check(23, 2)


def test_numpy_multiplies_by_every_weight_and_gives_the_last_product(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, multiplied, real = np.random.default_rng(0), [], np.matmul
    weights = [rng.standard_normal((5, 7), np.float32) for _ in range(3)]

    def matmul(a: Any, b: Any, **options: Any) -> Any:
        multiplied.append(b)
        return real(a, b, **options)

    monkeypatch.setattr(np, "matmul", matmul)
    x = rng.standard_normal((4, 7), np.float32)
    np.testing.assert_array_equal(NumpySide(Settings()).hold(weights, x)(), x @ weights[-1].T)
    assert [b.base is weight for b, weight in zip(multiplied[:3], weights, strict=True)] == [True] * 3


@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.parametrize("side", [NumpySide, RefdiffSide])
def test_products(side: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.bench.side.CACHES", 0)
    answer = side(Settings(threads=2, least=0)).product(size, (24, 31))
    weight = np.random.default_rng(0).standard_normal((24, 31), np.float32)
    x = np.random.default_rng(1).standard_normal((size, 31), np.float32)
    np.testing.assert_allclose(answer["sample"], (x.astype(np.float64) @ weight.T)[-1, ::3], rtol=1e-4, atol=1e-5)
    assert answer["seconds"] > 0


@pytest.mark.parametrize(
    ("side", "needed"),
    [(OnnxRuntimeSide, ("onnx", "onnxruntime")), (TransformersSide, ("torch", "transformers"))],
)
def test_what_is_missing_is_said_in_one_sentence(
    side: Any, needed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in needed:
        for name in needed:
            monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
        with pytest.raises(UnavailableError, match=rf"^--against (\w+) needs \1 and {needed[0]} \(pip install"):
            side(Settings()).prepare()
