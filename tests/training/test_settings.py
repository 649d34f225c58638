"""Settings fit together; the estimate of memory is a little below what training holds."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.backends import backend_for
from refdiff.backends.numpy.workspace import keep_freed_memory
from refdiff.model.weights import flatten
from refdiff.training.adamw import AdamW
from refdiff.training.settings import Settings, needed_memory


def config(variant: str = "hf", layers: int = 3) -> refdiff.DiffLlamaConfig:
    return refdiff.DiffLlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, variant=variant, tie_word_embeddings=True, pad_token_id=None,
    )  # fmt: skip


def test_settings_that_do_not_fit_together() -> None:
    for wrong, message in (
        ({"batch_size": 4, "accumulate": 3}, "batch_size: got 4, expected a multiple of accumulate 3"),
        ({"optimizer": "sgd"}, "one of adamw, muon"),
        ({"schedule": "linear"}, "one of cosine, constant"),
        ({"context": 1}, "context: got 1"),
        ({"batch_size": 0}, "batch_size: got 0, expected 1 or more"),
        ({"learning_rate": -1e-3}, "learning_rate: got -0.001, expected a number above 0"),
        ({"grad_clip": float("nan")}, "grad_clip: got nan, expected a number above 0"),
        ({"save_every": -1}, "save_every: got -1, expected 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay: got -0.1, expected 0 or more"),
        ({"learning_rate": "high"}, "learning_rate: got 'high', expected type float"),
        ({"max_steps": 2.5}, "max_steps: got 2.5, expected type int"),
        ({"seed": True}, "seed: got True, expected type int"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)
    assert Settings(learning_rate=1).learning_rate == 1


def test_names_of_version_0_1_are_accepted() -> None:
    old: dict[str, Any] = {"steps": 5, "batch": 4, "rate": 0.1, "warmup": 3, "decay": 0.2, "clip": 0.5}
    settings = Settings(**old)
    assert settings == Settings(
        max_steps=5, batch_size=4, learning_rate=0.1, warmup_steps=3, weight_decay=0.2, grad_clip=0.5
    )
    assert {name: getattr(settings, name) for name in old} == old
    change: dict[str, Any] = {"steps": 6}
    assert replace(settings, **change).max_steps == 6


@pytest.mark.parametrize(
    ("variant", "layers", "batch", "context"),
    [
        ("hf", 24, 1, 8), ("paper", 24, 1, 8), ("v2", 3, 8, 128), ("plain", 3, 8, 128), ("hf", 3, 64, 128),
        ("hf", 2, 1, 2048),
    ],
)  # fmt: skip
def test_the_estimate_is_what_training_holds_at_least(variant: str, layers: int, batch: int, context: int) -> None:
    """Where the weights are most of it, where the tokens are, a quarter of all at a time, or one long sequence."""
    ids = np.random.default_rng(0).integers(0, 500, (batch, context))
    keep_freed_memory()  # once in a process, with a block that is never written
    tracemalloc.start()
    model = refdiff.DiffLlamaForCausalLM.from_config(config(variant, layers), threads=1)
    optimizer = AdamW(flatten(model.params))
    _, grads = model.loss_and_grad(ids, labels=ids)
    optimizer.step(flatten(grads), 1e-3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    estimate = sum(needed_memory(config(variant, layers), Settings(batch_size=batch, context=context), threads=1))
    assert peak / 1.6 < estimate < peak


def test_an_estimate_for_any_number_of_sequences_takes_no_memory_itself() -> None:
    tracemalloc.start()
    _, passes = needed_memory(config(), Settings(batch_size=10**8, context=10**5), threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert passes > 16 * 10**13
    assert peak < 10**6


@pytest.mark.parametrize(("batch", "context"), [(1, 5), (7, 300), (64, 128), (100, 1000), (33, 64)])
def test_sequences_at_once_are_those_of_the_largest_parts(batch: int, context: int) -> None:
    for threads in (1, 2, 3):
        backend = backend_for(np, threads=threads)
        sizes = sorted(part.stop - part.start for part in backend.split_batch(batch, context))
        assert backend.sequences_at_once(batch, context) == sum(sizes[-threads:])
