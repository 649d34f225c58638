"""One property over 560 random checkpoints: whatever is called, refdiff answers what transformers answers.

Each checkpoint has a random config, random inputs and a few random calls: the class itself with its labels, with a
cache, and `generate` with random options, from ids, embeddings or a cache. Numbers agree to 1e-10 in float64, tokens
exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.compare import TOLERANCE, compare_outputs
from tests.parity.checkpoints import Recipe, recipes
from tests.parity.conftest import Checkpoint

COUNT, BLOCK = 560, 35
CALLS = 3  # of generate, by each language model
RECIPES = recipes(COUNT, seed=48)


class Tilt(transformers.LogitsProcessor):
    """Halves the scores, and adds to some of them; in arrays of either library."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores * 0.5
        scores[:, 5::7] += 2.0
        return scores


class Divisible(transformers.StoppingCriteria):
    """The last token is a multiple of five."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return input_ids[:, -1] % 5 == 0


class Draw:
    """Random choices that follow from one checkpoint's number."""

    def __init__(self, index: int) -> None:
        self.rng = np.random.default_rng((48, index))

    def one(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def chance(self, odds: float) -> bool:
        return bool(self.rng.random() < odds)

    def ids(self, config: dict[str, Any], batch: int, length: int) -> np.ndarray:
        """Token ids without the padding token."""
        allowed = np.setdiff1d(np.arange(config["vocab_size"]), [config["pad_token_id"] or 0])
        return self.rng.choice(allowed, (batch, length))

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """Padding at the left of each text but the first, of which at least one token is left."""
        starts = self.rng.integers(0, ids.shape[1], len(ids))
        starts[0] = 0
        return (np.arange(ids.shape[1]) >= starts[:, None]).astype(np.int64)

    def labels(self, recipe: Recipe, ids: np.ndarray, seen: np.ndarray | None) -> dict[str, np.ndarray]:
        """Targets of the kind that the head takes, none at padding: what attends to nothing is not compared."""
        kind, config = recipe.architecture.removeprefix("DiffLlama"), recipe.config
        (B, T), classes = ids.shape, config.get("num_labels", 2)
        dropped = self.rng.random(ids.shape) < 0.2
        dropped[:, -1] = False
        if seen is not None:
            dropped |= ~(seen & np.roll(seen, 1, axis=1))  # the token before predicts it
        if kind == "ForCausalLM":
            return {"labels": np.where(dropped, -100, ids)}
        if kind == "ForTokenClassification":
            return {"labels": np.where(dropped, -100, self.rng.integers(0, classes, ids.shape))}
        if kind == "ForQuestionAnswering" and seen is None:
            return {name: self.rng.integers(0, T, B) for name in ("start_positions", "end_positions")}
        if kind == "ForSequenceClassification":
            problem = config["problem_type"] or ("regression" if classes == 1 else "single_label_classification")
            whole = problem == "single_label_classification"
            shape = (B,) if whole or classes == 1 else (B, classes)
            return {"labels": self.rng.integers(0, classes, B) if whole else self.rng.random(shape)}
        return {}

    def generation(self, config: dict[str, Any]) -> dict[str, Any]:
        """Options of `generate`: some processors, and greedy decoding, sampling or beams."""
        words = [[int(token) for token in self.rng.integers(3, config["vocab_size"], n)] for n in (1, 2, 2)]
        drawn = {
            "repetition_penalty": self.one(0.8, 1.3, 2.0),
            "no_repeat_ngram_size": self.one(1, 2, 3),
            "bad_words_ids": words,
            "suppress_tokens": words[1],
            "sequence_bias": [[words[0], 3.0], [words[1], -2.5]],
            "min_new_tokens": self.one(2, 5),
        }
        options = {name: value for name, value in drawn.items() if self.chance(0.3)}
        start, step = self.one(0, 1, 2), self.one(2, 3)
        newer = {
            "min_length": int(self.rng.integers(1, 14)),
            "exponential_decay_length_penalty": (self.one(0, 2), self.one(0.9, 1.4)),
            "begin_suppress_tokens": [int(token) for token in self.rng.integers(3, config["vocab_size"], 9)],
            "forced_bos_token_id": int(self.rng.integers(3, config["vocab_size"])),
            "forced_eos_token_id": self.one(2, 7),
            "renormalize_logits": True,
            "remove_invalid_values": True,
            "watermarking_config": self.one(
                transformers.WatermarkingConfig(bias=1.5),
                transformers.WatermarkingConfig(greenlist_ratio=0.5, seeding_scheme="selfhash", context_width=2),
                transformers.SynthIDTextWatermarkingConfig(keys=[3, 11, 6], ngram_len=3),
            ),
            "prefix_allowed_tokens_fn": lambda row, ids: list(
                range((start + row + len(ids)) % step, config["vocab_size"], step)
            ),
            "logits_processor": transformers.LogitsProcessorList([Tilt()]),
            "stopping_criteria": transformers.StoppingCriteriaList([Divisible()]),
        }
        options |= {name: value for name, value in newer.items() if self.chance(0.15)}
        forbidden = [*options.get("suppress_tokens", []), *options.get("begin_suppress_tokens", [])]
        if options.get("forced_bos_token_id") in forbidden:  # leaves no token: an error, or in transformers token 0
            del options["forced_bos_token_id"]
        options["max_new_tokens"] = int(self.rng.integers(1, 5)) + options.get("min_new_tokens", 0)
        kind = self.one("greedy", "greedy", "sampling", "beams")
        if kind == "beams" or "exponential_decay_length_penalty" in options:
            options.pop("remove_invalid_values", None)  # sums and multiples of the lowest number overflow
        if kind == "beams":
            options["num_beams"] = self.one(2, 3, 4)
            options["length_penalty"] = self.one(-1.0, 0.5, 1.0, 2.0)
            options["early_stopping"] = self.one(False, True, "never")
            options["num_return_sequences"] = self.one(1, options["num_beams"])
        elif self.chance(0.15):
            options["guidance_scale"] = self.one(0.5, 1.7, 3.0)
        if kind == "sampling":
            warpers = {
                "temperature": self.one(0.5, 1.7),
                "top_h": self.one(0.3, 0.8),
                "top_k": self.one(1, 5, 20),
                "top_p": self.one(0.3, 0.9),
                "min_p": self.one(0.02, 0.3),
                "typical_p": self.one(0.4, 0.9),
                "epsilon_cutoff": self.one(0.001, 0.05),
                "eta_cutoff": self.one(0.001, 0.05),
            }
            options |= {name: value for name, value in warpers.items() if self.chance(0.4)} | {"do_sample": True}
        return options


def check_call(checkpoint: Checkpoint, draw: Draw) -> None:
    """A call with labels, and a second one that goes on from the cache of the first."""
    recipe, ours = checkpoint.recipe, checkpoint.fast
    ids = draw.ids(recipe.config, draw.one(1, 2, 3), int(draw.rng.integers(2, 20)))
    mask = draw.mask(ids) if draw.chance(0.5) else None
    seen = None if mask is None else mask == 1
    given: dict[str, Any] = draw.labels(recipe, ids, seen) if draw.chance(0.6) else {}
    given |= {name: True for name in ("output_attentions", "output_hidden_states") if draw.chance(0.3)}
    want = checkpoint.fresh_truth()(ids, attention_mask=mask, **given)
    compare_outputs(ours(ids, attention_mask=mask, **given), want, seen, pooled=checkpoint.pooled)
    if checkpoint.pooled or mask is not None:
        return
    cut = int(draw.rng.integers(1, ids.shape[1]))
    peer = checkpoint.fresh_truth()
    first, second = peer(ids[:, :cut], use_cache=True), ours(ids[:, :cut], use_cache=True)
    if not hasattr(first, "cache"):  # the outputs of some heads have none
        return
    want = peer(ids[:, cut:], cache=first.cache, use_cache=True)
    compare_outputs(ours(ids[:, cut:], cache=second.cache, use_cache=True), want)


def check_generation(checkpoint: Checkpoint, draw: Draw) -> None:
    """Tokens equal transformers'; scores are what its processors make of the same logits, and those its own logits."""
    config = checkpoint.recipe.config
    ids = draw.ids(config, draw.one(1, 2), int(draw.rng.integers(1, 9)))
    options = draw.generation(config)
    begin = "guided" if "guidance_scale" in options else draw.one("ids", "ids", "embeddings", "cache")
    whole = "repetition_penalty" in options or begin in ("guided", "cache")
    # transformers penalizes the padding token, too; here a padded prompt has the text of the prompt alone
    mask = np.ones_like(ids) if whole else draw.mask(ids)
    wanted = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    peer = checkpoint.fresh_sdpa().model
    stored = transformers.DiffLlamaForCausalLM.from_pretrained(checkpoint.folder)
    peer.generation_config = stored.generation_config
    ours: dict[str, Any] = {"input_ids": ids}
    theirs: dict[str, Any] = {"input_ids": torch.tensor(ids)}
    if begin == "embeddings":
        embeds = peer.get_input_embeddings()(torch.tensor(ids)).detach() * 1.25
        ours, theirs = {"inputs_embeds": embeds.numpy()}, {"inputs_embeds": embeds}
    elif begin == "cache" and ids.shape[1] > 1:
        cut = int(draw.rng.integers(1, ids.shape[1]))
        ours["past_key_values"] = checkpoint.fast(ids[:, :cut], use_cache=True).cache
        if "num_beams" not in options:  # with beams transformers fails, and the text is that of the whole prompt
            theirs["cache"] = peer(torch.tensor(ids[:, :cut]), use_cache=True).cache
    got = checkpoint.fast.generate(**ours, attention_mask=mask, seed=1, **options, **wanted)
    if not options.get("do_sample"):
        want = peer.generate(**theirs, attention_mask=torch.tensor(mask), **options, **wanted)
        np.testing.assert_array_equal(got.sequences, want.sequences.numpy(), err_msg=f"{begin} {options}")
    if "num_beams" in options:
        found = got.sequences_scores > -1e8  # others stand for beams that were not found
        np.testing.assert_array_equal(got.beam_indices[found], want.beam_indices.numpy()[found])
        np.testing.assert_allclose(got.sequences_scores, want.sequences_scores.numpy(), rtol=1e-5, atol=1e-6)
        return
    options.pop("stopping_criteria", None)
    given = {name: options.pop(name) for name in ("logits_processor", "prefix_allowed_tokens_fn") if name in options}
    prepared, _ = peer._prepare_generation_config(None, **options)
    peer._prepare_special_tokens(prepared, True, device="cpu")
    length = 0 if begin == "embeddings" else ids.shape[1]
    peer._prepare_generated_length(
        prepared,
        has_default_max_length=True,
        has_default_min_length="min_length" not in options,
        model_input_name="inputs_embeds" if begin == "embeddings" else "input_ids",
        input_ids_length=length,
        inputs_tensor=ids,
    )
    processors = peer._get_logits_processor(
        prepared, input_ids_seq_length=length, device="cpu", model_kwargs={"attention_mask": None}, **given
    )
    ends = np.atleast_1d(config["eos_token_id"])
    for step, (logits, scores) in enumerate(zip(got.logits, got.scores, strict=True)):
        so_far = got.sequences[:, : length + step]
        live = ~np.isin(so_far[:, length:], ends).any(axis=1)
        made = processors(torch.tensor(so_far), torch.tensor(np.asarray(logits))).detach().numpy()[live]
        if isinstance(options.get("watermarking_config"), transformers.SynthIDTextWatermarkingConfig):
            # its factor 1 + g − Σ g p is rounding error where a token is certain: compare probabilities
            made, scores = np.exp(made), np.exp(scores)
        finite = np.isfinite(made)
        np.testing.assert_array_equal(np.isfinite(scores[live]), finite, err_msg=str(options))
        np.testing.assert_allclose(scores[live][finite], made[finite], TOLERANCE, TOLERANCE, err_msg=str(options))


@pytest.mark.filterwarnings("ignore:the text is longer than", "ignore:.*has no effect", "ignore:.*no effect without")
@pytest.mark.filterwarnings("ignore:Unfeasible length constraints", "ignore:Passing .* with .inputs_embeds.")
@pytest.mark.parametrize("block", range(COUNT // BLOCK))
def test_random_checkpoints(block: int, tmp_path: Path) -> None:
    for recipe in RECIPES[block * BLOCK : (block + 1) * BLOCK]:
        checkpoint, draw = Checkpoint(recipe, tmp_path / str(recipe.index)), Draw(recipe.index)
        try:
            check_call(checkpoint, draw)
            if recipe.architecture == "DiffLlamaForCausalLM":
                for _ in range(CALLS):
                    check_generation(checkpoint, draw)
        except Exception as error:
            error.add_note(f"checkpoint {recipe}: {recipe.config}")
            raise
