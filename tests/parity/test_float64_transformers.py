"""Is the truth true? The rewritten transformers is double in every operation, and right to 10⁻¹³."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.compare import relative
from tests.parity import float64_transformers
from tests.parity.conftest import Checkpoint

LONG = np.longdouble


class DtypeSpy(TorchDispatchMode):
    """Collects the dtype of every floating tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.is_floating_point()}
        return result


LABELS = {
    "DiffLlamaForCausalLM": {"labels": torch.arange(24).reshape(2, 12) % 5},
    "DiffLlamaForTokenClassification": {"labels": torch.zeros(2, 12, dtype=torch.long)},
    "DiffLlamaForQuestionAnswering": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
}


def test_no_operation_leaves_float64(checkpoint: Checkpoint) -> None:
    model = checkpoint.truth.model
    architecture = checkpoint.architecture
    ids = torch.from_numpy(checkpoint.ids(2))
    options = dict(LABELS.get(architecture, {}))
    if checkpoint.pooled:
        labels, kind = model.config.num_labels, model.config.problem_type
        whole = kind == "single_label_classification" or (kind is None and labels > 1)
        options["labels"] = torch.zeros(2, dtype=torch.long) if whole else torch.zeros(2, labels, dtype=torch.float64)
    with float64_transformers.float64_by_default(), torch.no_grad(), DtypeSpy() as spy:
        rebuilt = float64_transformers.build(architecture, model.config, model.state_dict())
        output = rebuilt(ids, output_hidden_states=True, output_attentions=True, **options)
    assert spy.seen == {torch.float64}
    assert (output.get("loss") is not None) == bool(options)


def test_untouched_transformers_does_leave_float64(tmp_path: Path) -> None:
    """The spy can see: transformers as it is makes float32 tensors in a float64 model."""
    config = transformers.DiffLlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.DiffLlamaForCausalLM(config).double().eval()
    with torch.no_grad(), DtypeSpy() as spy:
        model(torch.arange(5)[None])
    assert torch.float32 in spy.seen


def norm(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + LONG(eps))


def rotate(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def by_hand(p: dict[str, np.ndarray], ids: np.ndarray, config: transformers.DiffLlamaConfig) -> np.ndarray:
    """Logits (T, V) of one prompt, in extended precision, one pair of heads at a time."""
    p = {name: value.astype(LONG) for name, value in p.items()}
    T, d, half = len(ids), config.head_dim, config.num_attention_heads // 2
    repeat, kv_half = config.num_attention_heads // config.num_key_value_heads, config.num_key_value_heads // 2
    frequency = LONG(config.rope_parameters["rope_theta"]) ** (-np.arange(0, d, 2).astype(LONG) / d)
    angle = np.arange(T).astype(LONG)[:, None] * frequency
    x = p["model.embed_tokens.weight"][ids]
    for i in range(config.num_hidden_layers):
        w = {n.removeprefix(f"model.layers.{i}."): v for n, v in p.items() if n.startswith(f"model.layers.{i}.")}
        h = norm(x, config.rms_norm_eps) * w["input_layernorm.weight"]
        q, k, v = (
            (h @ w[f"self_attn.{n}_proj.weight"].T + w[f"self_attn.{n}_proj.bias"]).reshape(T, -1, d) for n in "qkv"
        )
        lambdas = {n: w[f"self_attn.lambda_{n}"] for n in ("q1", "k1", "q2", "k2")}
        start = LONG(0.8) - LONG(0.6) * np.exp(LONG(-0.3) * i)
        weight = np.exp((lambdas["q1"] * lambdas["k1"]).sum()) - np.exp((lambdas["q2"] * lambdas["k2"]).sum()) + start
        rows = []
        for head in range(half):
            maps = []
            for h_q in (head, head + half):
                scores = rotate(q[:, h_q], angle) @ rotate(k[:, h_q // repeat], angle).T / np.sqrt(LONG(d))
                e = np.where(np.tri(T, dtype=bool), np.exp(scores - scores.max(-1, keepdims=True)), LONG(0))
                maps.append(e / e.sum(-1, keepdims=True))
            j = head // repeat
            value = np.concatenate([v[:, j], v[:, j + kv_half]], axis=-1)
            rows.append(norm((maps[0] - weight * maps[1]) @ value, config.rms_norm_eps) * (1 - start))
        out = np.concatenate(rows, axis=-1)
        x = x + out @ w["self_attn.o_proj.weight"].T + w["self_attn.o_proj.bias"]
        h = norm(x, config.rms_norm_eps) * w["post_attention_layernorm.weight"]
        gate = h @ w["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    return norm(x, config.rms_norm_eps) * p["model.norm.weight"] @ p["lm_head.weight"].T


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 4), (6, 2), (2, 2)])
def test_equals_a_transcription_in_extended_precision(tmp_path: Path, heads: int, kv_heads: int) -> None:
    config = transformers.DiffLlamaConfig(
        vocab_size=31,
        hidden_size=24,
        intermediate_size=29,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=10,
        attention_bias=True,
        rms_norm_eps=1e-3,
        lambda_std_dev=0.5,
        initializer_range=0.3,
    )
    torch.manual_seed(heads)
    model = transformers.DiffLlamaForCausalLM(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(tmp_path)
    ids = np.random.default_rng(heads).integers(0, 31, 11)
    truth = by_hand(load_file(tmp_path / "model.safetensors"), ids, config)
    for attention in ("eager", "sdpa"):
        peer = float64_transformers.float64_peer(tmp_path, "DiffLlamaForCausalLM", attention=attention)
        assert relative(peer(ids[None]).logits[0], truth) < 1e-13


def test_an_unknown_number_of_casts_is_refused() -> None:
    name = "transformers.loss.loss_utils"
    with pytest.raises(float64_transformers.UnknownReleaseError, match="has 1 casts to float32, not 3"):
        float64_transformers.rewrite("x = logits.float()\n", name)
    with pytest.raises(float64_transformers.UnknownReleaseError, match="still mentions 'float16'"):
        float64_transformers.rewrite("x.float() + x.float() + x.float()\ny.to(torch.bfloat16)\n", name)
