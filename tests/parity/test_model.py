"""The whole model against transformers in float64: every logit, hidden state and attention row within 10⁻¹⁰."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compare import TOLERANCE, compare, compare_outputs
from tests.parity.conftest import Checkpoint, of
from tests.parity.float64_transformers import float64_peer

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than")

NUMBERS = {
    "DiffLlamaModel": ["last_hidden_state"],
    "DiffLlamaForQuestionAnswering": ["start_logits", "end_logits"],
}


def everything(model: Any, ids: np.ndarray | None, **options: Any) -> Any:
    return model(ids, output_hidden_states=True, output_attentions=True, **options)


def test_prompt(checkpoint: Checkpoint, ours: Any) -> None:
    ids = checkpoint.ids()
    want = everything(checkpoint.fresh_truth(), ids)
    compared = compare_outputs(everything(ours, ids), want, pooled=checkpoint.pooled)
    assert compared == [*NUMBERS.get(checkpoint.architecture, ["logits"]), "hidden_states", "attentions"]


def test_outputs_without_maps_and_hidden_states_are_the_same(checkpoint: Checkpoint, ours: Any) -> None:
    """The path without maps is another one than the path with them."""
    ids = checkpoint.ids(2, 9)
    want = checkpoint.fresh_truth()(ids, use_cache=False)
    got = ours(ids, use_cache=False)
    compare_outputs(got, want, pooled=checkpoint.pooled)
    assert got.hidden_states is None
    assert got.attentions is None


def test_differential_maps_follow_from_the_rows(checkpoint: Checkpoint, ours: Any) -> None:
    """A₁ − λA₂ and λ, which transformers does not give, from what it does give and its weights."""
    ids = checkpoint.ids(2, 7)
    want = everything(checkpoint.fresh_truth(), ids)
    got = everything(ours, ids)
    weights = {name: value.numpy() for name, value in checkpoint.truth.model.state_dict().items()}
    heads = checkpoint.recipe.config["num_attention_heads"]
    for layer, rows in enumerate(want.attentions):
        vectors = {name[-2:]: value for name, value in weights.items() if f"layers.{layer}.self_attn.lambda_" in name}
        first, second = np.exp(vectors["q1"] @ vectors["k1"]), np.exp(vectors["q2"] @ vectors["k2"])
        lambda_ = first - second + 0.8 - 0.6 * np.exp(-0.3 * layer)
        # λ is a small difference of large numbers for some checkpoints: hold it to the larger of them
        assert abs(float(got.lambdas[layer]) - lambda_) <= TOLERANCE * max(first, second)
        difference = rows[:, : heads // 2] - lambda_ * rows[:, heads // 2 :]
        compare(got.differential_attentions[layer], difference, f"differential_attentions[{layer}]")
    assert len(got.lambdas) == len(got.differential_attentions) == len(want.attentions) > 0


def test_inputs_embeds(checkpoint: Checkpoint, ours: Any) -> None:
    rng = checkpoint.rng("embeds")
    embeds = rng.normal(size=(1 if checkpoint.pooled else 2, 8, checkpoint.recipe.config["hidden_size"]))
    embeds *= 10.0 ** rng.uniform(-4, 0.5, (*embeds.shape[:2], 1))
    want = everything(checkpoint.fresh_truth(), None, inputs_embeds=embeds)
    compare_outputs(everything(ours, None, inputs_embeds=embeds), want, pooled=checkpoint.pooled)


def test_position_ids(checkpoint: Checkpoint, ours: Any) -> None:
    """Positions that start late and differ by row, with a cache, so that no packing is looked for."""
    ids = checkpoint.ids(3, 8)
    positions = np.arange(8) + np.array([[0], [5], [31]])
    want = everything(checkpoint.fresh_truth(), ids, position_ids=positions, use_cache=True)
    got = everything(ours, ids, position_ids=positions, use_cache=True)
    compare_outputs(got, want, pooled=checkpoint.pooled)


@pytest.mark.parametrize("use_cache", [False, True])
def test_positions_that_start_again_are_packed_sequences(checkpoint: Checkpoint, ours: Any, use_cache: bool) -> None:
    """Without a mask and a cache they are kept apart; with a cache transformers does not look."""
    ids = checkpoint.ids(3, 11)
    positions = np.stack(
        [
            np.concatenate([np.arange(4), np.arange(5), np.arange(2)]),
            np.arange(11) + 3,
            np.concatenate([np.arange(1), np.arange(3) + 20, [2, 2], np.arange(5)]),
        ]
    )
    want = everything(checkpoint.fresh_truth(), ids, position_ids=positions, use_cache=use_cache)
    apart = want.attentions[0][0, 0, 10, :9].sum() == 0
    assert apart != use_cache
    got = everything(ours, ids, position_ids=positions, use_cache=use_cache)
    compare_outputs(got, want, pooled=checkpoint.pooled)


@of("DiffLlamaForCausalLM")
@pytest.mark.parametrize("keep", [1, 4, 0, np.array([0, 5, 2]), np.array([-1])], ids=str)
def test_logits_to_keep(checkpoint: Checkpoint, keep: Any) -> None:
    ids = checkpoint.ids(2, 7)
    want = checkpoint.fresh_truth()(ids, logits_to_keep=keep)
    compare(checkpoint.fast(ids, logits_to_keep=keep).logits, want.logits, "logits")


def test_saved_by_refdiff_loads_in_transformers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    ids = checkpoint.ids(2, 9)
    checkpoint.load(dtype="auto").save_pretrained(tmp_path, max_shard_size="12KB")
    want = everything(checkpoint.fresh_truth(), ids)
    again = everything(float64_peer(tmp_path, checkpoint.architecture), ids)
    for one, other in zip(again.hidden_states, want.hidden_states, strict=True):
        np.testing.assert_array_equal(one, other)
    compare_outputs(everything(checkpoint.load(folder=tmp_path), ids), want, pooled=checkpoint.pooled)
