"""Runs of transformers itself, recorded by hooks on the live model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import refdiff
from refdiff.oracle import Trace, first_divergence, hooks, trace
from tests.parity.test_torch import SIZES

PRECISIONS = ("float32", "bfloat16", "float16")


def prepared(folder: Path, dtype: str, attention: str) -> tuple[Any, dict[str, torch.Tensor], Trace]:
    """transformers' model, what it is called with, and the trace of ours.

    It is loaded: `model.to(torch.bfloat16)` would round the frequencies of RoPE too.
    """
    torch.manual_seed(0)
    kind = transformers.DiffLlamaForCausalLM
    kind(transformers.DiffLlamaConfig(**SIZES, max_position_embeddings=4096)).to(getattr(torch, dtype)).save_pretrained(
        folder
    )
    peer = kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention).eval()
    ids = np.random.default_rng(0).integers(1, 97, (2, 13))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    ours = refdiff.DiffLlamaForCausalLM.from_pretrained(folder)
    call = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    return peer, call, trace(ours, ids, attention_mask=mask)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_nothing_diverges_under_hooks(tmp_path: Path, dtype: str, attention: str) -> None:
    peer, call, ref = prepared(tmp_path / "model", dtype, attention)
    with torch.no_grad(), hooks(peer) as mine:
        peer(**call, output_attentions=attention == "eager")
    found = first_divergence(mine, ref)
    assert not found, str(found)
    assert sum(s.status == "equal" for s in found.stages) == (73 if attention == "eager" else 65)
    assert found.unknown == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("module", "wrong"),
    [
        ("model.layers.2.self_attn.q_proj", lambda x: x.roll(1, -1)),
        ("model.layers.3.self_attn.groupnorm", lambda x: x + 0.1),
        ("model.layers.0.mlp.act_fn", lambda x: x.abs()),
        ("model.norm", lambda x: x * 0.9),
    ],
)
def test_a_wrong_module_is_found(tmp_path: Path, dtype: str, module: str, wrong: Any) -> None:
    peer, call, ref = prepared(tmp_path / "model", dtype, "eager")
    peer.get_submodule(module).register_forward_hook(lambda _, args, out: wrong(out))
    with torch.no_grad(), hooks(peer) as mine:
        peer(**call)
    assert first_divergence(mine, ref).path == module


def test_frequencies_that_are_rounded_with_the_weights_are_found(tmp_path: Path) -> None:
    """`.to(torch.bfloat16)` rounds a buffer that `from_pretrained(dtype=torch.bfloat16)` leaves in float32."""
    peer, call, _ = prepared(tmp_path / "model", "bfloat16", "sdpa")
    call["position_ids"] = torch.arange(2000, 2013)[None]
    ours = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path / "model")
    ref = trace(ours, call["input_ids"], position_ids=call["position_ids"])
    for at in (None, "model.rotary_emb.cos"):
        with torch.no_grad(), hooks(peer) as mine:
            peer(input_ids=call["input_ids"], position_ids=call["position_ids"])
        assert first_divergence(mine, ref).path == at
        peer.to(torch.bfloat16)


def test_other_tokens_are_said_to_be_others(tmp_path: Path) -> None:
    peer, call, ref = prepared(tmp_path / "model", "float32", "sdpa")
    with hooks(peer) as mine:
        peer(**{**call, "input_ids": call["input_ids"].roll(-1, 1)})
    assert first_divergence(mine, ref).apart == ("the two runs have different tokens from position 0",)


def test_a_second_call_does_not_replace_the_first(tmp_path: Path) -> None:
    peer, call, ref = prepared(tmp_path / "model", "float32", "sdpa")
    with torch.no_grad(), hooks(peer) as mine:
        peer(**call)
        peer(**{**call, "input_ids": call["input_ids"].roll(-1, 1)})
    assert {"lm_head", "lm_head[1]", "inputs.input_ids[1]"} < mine.keys()
    assert not first_divergence({path: x for path, x in mine.items() if "[1]" not in path}, ref)
