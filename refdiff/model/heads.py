"""Hidden states → next-token logits, sequence class, token classes, answer span: the five classes, named as in HF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, take
from refdiff.model import losses
from refdiff.model.cache import KVCache
from refdiff.model.call import ModelInputs, document_inputs, model_call
from refdiff.model.diffllama_vjp import linear_back
from refdiff.model.inputs import host, integers, numbers, token_ids
from refdiff.model.outputs import ModelOutput
from refdiff.model.pretrained import PreTrainedModel
from refdiff.model.trainable import HeadResult, TrainableModel


class DiffLlamaModel(PreTrainedModel):
    """The decoder without a head."""

    architecture = "DiffLlamaModel"
    base_prefix: ClassVar[str | None] = None

    @model_call
    @document_inputs
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: KVCache | None = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        **options: Unpack[ModelInputs],
    ) -> ModelOutput:
        """Compute `last_hidden_state` (B, T, D)."""
        return self._forward(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, options)


class DiffLlamaForCausalLM(TrainableModel):
    """The decoder with a next-token head."""

    architecture = "DiffLlamaForCausalLM"
    head_inputs: ClassVar[tuple[str, ...]] = (
        "labels", "logits_to_keep", "shift_labels", "num_items_in_batch", "ignore_index",
    )  # fmt: skip

    @model_call
    @document_inputs
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: KVCache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: Any = 0,
        *,
        shift_labels: Any = None,
        num_items_in_batch: Any = None,
        ignore_index: int = -100,
        **options: Unpack[ModelInputs],
    ) -> ModelOutput:
        """Compute `logits` (B, T, V), and with labels the `loss` of each next one that is not −100.

        Args:
            labels: (B, T) integers, or one for each of the kept positions; add `loss`.
                `loss_and_grad` gives it with the gradients of all weights.
            shift_labels: the target of each position; with them, `labels` say only that a loss is
                wanted.
            num_items_in_batch: divide the sum of the losses by this number, in place of the number
                of targets.
            ignore_index: the label that does not count, in place of −100.
            logits_to_keep: only the last n positions (0 = all), or the positions in an integer
                array (n,) or (B, n), or those that a boolean array (B, T) marks, then as (marked,
                V).
        """
        is_number = isinstance(logits_to_keep, int | np.integer)
        last = int(logits_to_keep) if is_number else 0
        if last < 0:
            raise ValueError(f"logits_to_keep: got {last}, expected 0 or more; for one position pass [{last}]")
        out = self._forward(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, options, last)
        hidden = out.last_hidden_state
        if not is_number:
            hidden = self._select_positions(hidden, logits_to_keep)
        out.last_hidden_state = None
        out.logits = self.ops.linear(hidden, **self._head)
        if labels is not None:
            if out.logits.ndim != 3:
                raise ValueError("logits_to_keep: got a boolean array and labels, expected a number or positions")
            name, given = ("labels", labels) if shift_labels is None else ("shift_labels", shift_labels)
            shifted, targets = shift_labels is not None, self._array(integers(name, given))
            out.loss = losses.causal_lm_loss(
                self.ops, out.logits, targets, shifted=shifted, num_items=num_items_in_batch, ignore_index=ignore_index
            )
        return out

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        streamer: Any = None,
        generator: np.random.Generator | None = None,
        seed: int | Sequence[int] | None = None,
        **generation_options: Any,
    ) -> Any:
        """Continue token sequences; options and results are transformers'.

        Args:
            input_ids: (B, T) token ids, as of `tokenizer(texts, return_tensors="np")`.
            attention_mask: (B, T), 1 for a token and 0 for padding, which stands at the left.
            streamer: gets tokens as they are generated, such as `refdiff.TextStreamer(tokenizer)`.
            generator, seed: source of draws; assistant_model changes draws, not their distribution.
            generation_options: any of these; defaults that generation_config.json does not set:

        Prompt: inputs_embeds=None, cache=None, bos_token_id=None; inputs and past_key_values as
            other names
        Length: max_new_tokens=None and max_length=None (20 new tokens), min_new_tokens=None,
            min_length=0, max_time=None, eos_token_id=None, stop_strings=None with tokenizer=None,
            pad_token_id=None, stopping_criteria=None, forced_eos_token_id=None,
            exponential_decay_length_penalty=None
        Sampling: do_sample=False, temperature=1.0, top_h=None, top_k=50, top_p=1.0, min_p=None,
            typical_p=1.0, epsilon_cutoff=0.0, eta_cutoff=0.0
        Processors: repetition_penalty=1.0, no_repeat_ngram_size=0, encoder_repetition_penalty=1.0,
            encoder_no_repeat_ngram_size=0, bad_words_ids=None, suppress_tokens=None,
            begin_suppress_tokens=None, forced_bos_token_id=None, sequence_bias=None,
            prefix_allowed_tokens_fn=None, logits_processor=None, guidance_scale=None with
            negative_prompt_ids=None and negative_prompt_attention_mask=None,
            watermarking_config=None, remove_invalid_values=False, renormalize_logits=False
        Beams and more: num_beams=1, length_penalty=1.0, early_stopping=False,
            num_return_sequences=1, prompt_lookup_num_tokens=None, assistant_model=None
        Results: return_dict_in_generate=False, output_scores=False, output_logits=False,
            output_attentions=False, output_hidden_states=False
        All of these together: generation_config=None
        """
        from refdiff.generation import generate  # imported late: generation imports model

        return generate(
            self,
            input_ids,
            attention_mask=attention_mask,
            streamer=streamer,
            generator=generator,
            seed=seed,
            **generation_options,
        )

    def compute_transition_scores(
        self, sequences: Any, scores: Sequence[Any], beam_indices: Any = None, normalize_logits: bool = False
    ) -> NDArray[np.floating]:
        """Return the score of each generated token, from `generate(…, output_scores=True)`.

        Args:
            sequences, scores, beam_indices: as in the result; `beam_indices` of a beam search.
            normalize_logits: give log-probabilities, in place of the scores as they are.

        Shapes:
            (R, T), per step (B, V), (R, n) -> (R, most generated tokens), 0 after a beam's end
        """
        ids = integers("sequences", sequences)
        steps = np.stack([host("scores", step) for step in scores], axis=1)  # (B, n, V)
        rows = np.arange(len(ids))[:, None].repeat(steps.shape[1], axis=1)
        if beam_indices is not None:
            rows = integers("beam_indices", beam_indices)
            rows = rows[:, : int((rows >= 0).sum(axis=1).max())]
        n, ended = rows.shape[1], rows < 0
        if normalize_logits:
            steps = steps - steps.max(axis=-1, keepdims=True)
            steps = steps - np.log(np.exp(steps).sum(axis=-1, keepdims=True))
        chosen = np.where(ended, 0, ids[:, ids.shape[1] - n :])
        transitions: NDArray[np.floating] = np.where(ended, 0, steps[np.where(ended, 0, rows), np.arange(n), chosen])
        return transitions

    @property
    def _head(self) -> dict[str, Array]:
        head: dict[str, Array] = self.params.get("lm_head") or self.base_params["embed_tokens"]
        return head

    def _head_loss_and_grad(self, g: Array, last_hidden: Array, input_ids: Any, labels: Any) -> HeadResult:
        targets = self._array(integers("labels", labels))
        logits = self.ops.linear(last_hidden, **self._head)
        loss, dlogits = losses.causal_lm_loss_and_grad(self.backend, self.ops, g, logits, targets)
        dlast, head = linear_back(self.ops, dlogits, last_hidden, self._head)
        return loss, dlast, {"lm_head": head}

    def _shares(self, labels: Any, parts: Sequence[slice], shape: tuple[int, int]) -> list[float] | None:
        targets = integers("labels", labels)
        if targets.shape != shape:
            return None  # the loss raises
        counts = [int(np.count_nonzero(targets[part, 1:] != -100)) for part in parts]
        return [count / sum(counts) for count in counts] if sum(counts) else None

    def _select_positions(self, hidden: Array, logits_to_keep: Any) -> Array:
        xp, kept = self.xp, host("logits_to_keep", logits_to_keep)
        B, T, D = hidden.shape
        if kept.dtype == np.bool_ and kept.shape == (B, T):
            flat = np.flatnonzero(kept)
            return take(xp.reshape(hidden, (B * T, D)), self._array(flat))
        kept = integers("logits_to_keep", kept)
        if kept.ndim not in (1, 2) or (kept.ndim == 2 and kept.shape[0] != B):
            raise ValueError(
                f"logits_to_keep: got shape {kept.shape}, expected (n,) or ({B}, n), or boolean ({B}, {T})"
            )
        if kept.size and not (kept.min() >= -T and kept.max() < T):
            raise IndexError(f"logits_to_keep: got {kept.min()} to {kept.max()}, expected {-T} to {T - 1}")
        kept = np.broadcast_to(kept % T, (B, kept.shape[-1]))
        rows = self._array(np.ascontiguousarray(kept + T * np.arange(B)[:, None]).reshape(-1))
        return xp.reshape(take(xp.reshape(hidden, (B * T, D)), rows), (*kept.shape, D))


class DiffLlamaForSequenceClassification(TrainableModel):
    """The decoder with a classifier of the whole text."""

    architecture = "DiffLlamaForSequenceClassification"

    @model_call
    @document_inputs
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: KVCache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        **options: Unpack[ModelInputs],
    ) -> ModelOutput:
        """Compute `logits` (B, C) at the last token of each sequence, and with labels the `loss`.

        The last token is the last of `input_ids` that is not `config.pad_token_id`, which a batch
        of several sequences needs. `attention_mask` is not read for it. With `inputs_embeds` it is
        the last position, even if that is padding. The loss is that of `config.problem_type`, see
        `refdiff.model.losses.sequence_loss`.

        Args:
            labels: (B,), or (B, C) for several labels per sequence; add `loss`. `loss_and_grad`
                gives it with the gradients of all weights.
        """
        out = self._forward(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, options)
        pooled, _ = self._pooled(out.last_hidden_state, input_ids)
        out.last_hidden_state = None
        out.logits = self.ops.linear(pooled, **self.params["score"])
        if labels is not None:
            targets = self._array(numbers("labels", labels))
            out.loss = losses.sequence_loss(self.ops, out.logits, targets, self.config.problem_type)
        return out

    def _pooled(self, last_hidden: Any, input_ids: Any) -> tuple[Array, Array]:
        """Return the hidden state (B, D) of each sequence's last token, and its index in (B T)."""
        B, T, D = last_hidden.shape
        pad = self.config.pad_token_id
        if pad is None and B != 1:
            raise ValueError(
                f"pad_token_id: got none in the config, expected one to find the ends of the {B} sequences of a batch; "
                "set model.config.pad_token_id, or give one sequence at a time"
            )
        end = np.full(B, T - 1)
        if pad is not None and input_ids is not None:
            end = (np.arange(T) * (token_ids(input_ids) != pad)).max(axis=1)
        rows = self._array(end + T * np.arange(B))
        return take(self.xp.reshape(last_hidden, (B * T, D)), rows), rows

    def _head_loss_and_grad(self, g: Array, last_hidden: Array, input_ids: Any, labels: Any) -> HeadResult:
        targets, kind = self._array(numbers("labels", labels)), self.config.problem_type
        pooled, rows = self._pooled(last_hidden, input_ids)
        logits = self.ops.linear(pooled, **self.params["score"])
        loss = losses.sequence_loss(self.ops, logits, targets, kind)
        dlogits = losses.sequence_loss_vjp(self.ops, g, logits, targets, kind)
        dpooled, score = linear_back(self.ops, dlogits, pooled, self.params["score"])
        flat = self.xp.reshape(last_hidden, (-1, last_hidden.shape[-1]))
        _, dlast = self.ops.embedding_vjp(dpooled, rows, flat)  # pooling looks up rows, as an embedding does
        return loss, self.xp.reshape(dlast, last_hidden.shape), {"score": score}


class DiffLlamaForTokenClassification(TrainableModel):
    """The decoder with a classifier of every token."""

    architecture = "DiffLlamaForTokenClassification"

    @model_call
    @document_inputs
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: KVCache | None = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        **options: Unpack[ModelInputs],
    ) -> ModelOutput:
        """Compute `logits` (B, T, C), and with labels the `loss` over those that are not −100.

        Args:
            labels: (B, T) integers; add `loss`. `loss_and_grad` gives it with the gradients of all
                weights.
        """
        out = self._forward(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, options)
        out.logits = self.ops.linear(out.last_hidden_state, **self.params["score"])
        out.last_hidden_state = out.cache = None
        if labels is not None:
            targets = losses.checked_labels(out.logits, self._array(integers("labels", labels)))
            out.loss = self.ops.cross_entropy(out.logits, targets)
        return out

    def _head_loss_and_grad(self, g: Array, last_hidden: Array, input_ids: Any, labels: Any) -> HeadResult:
        logits = self.ops.linear(last_hidden, **self.params["score"])
        targets = losses.checked_labels(logits, self._array(integers("labels", labels)))
        loss = self.ops.cross_entropy(logits, targets)
        dlogits = self.ops.cross_entropy_vjp(g, logits, targets)[0]
        dlast, score = linear_back(self.ops, dlogits, last_hidden, self.params["score"])
        return loss, dlast, {"score": score}


class DiffLlamaForQuestionAnswering(TrainableModel):
    """The decoder with a head for the start and end of an answer; its weights: `transformer.…`."""

    architecture = "DiffLlamaForQuestionAnswering"
    base_prefix: ClassVar[str | None] = "transformer"
    base_model_prefix: ClassVar[str] = "transformer"
    head_inputs: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions", "num_items_in_batch")

    @model_call
    @document_inputs
    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        cache: KVCache | None = None,
        inputs_embeds: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        use_cache: bool | None = None,
        *,
        num_items_in_batch: Any = None,
        **options: Unpack[ModelInputs],
    ) -> ModelOutput:
        """Compute `start_logits` and `end_logits` (B, T), and with positions their mean loss.

        Args:
            start_positions, end_positions: (B,) integers; both add `loss`. `loss_and_grad` gives it
                with the gradients of all weights.
            num_items_in_batch: divide the sum of the losses by this number, in place of the number
                of targets.
        """
        out = self._forward(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, options)
        logits = self.ops.linear(out.last_hidden_state, **self.params["qa_outputs"])
        out.last_hidden_state = out.cache = None
        out.start_logits, out.end_logits = logits[..., 0], logits[..., 1]
        if start_positions is not None and end_positions is not None:
            starts = self._positions("start_positions", start_positions, logits.shape[0])
            ends = self._positions("end_positions", end_positions, logits.shape[0])
            spans = (out.start_logits, out.end_logits, starts, ends)
            out.loss = losses.answer_loss(self.ops, *spans, num_items_in_batch)
        return out

    @model_call
    def loss_and_grad(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Compute the loss of a call with these positions, and its gradients; see `TrainableModel`.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: as in a call.
            start_positions, end_positions: as in a call; required.

        Raises:
            ValueError: one of the positions is missing, or inputs that a call refuses too.
        """
        spans = {"start_positions": start_positions, "end_positions": end_positions}
        return self._loss_and_grad(input_ids, attention_mask, position_ids, inputs_embeds, spans)

    def _positions(self, name: str, at: Any, batch: int) -> Array:
        """Check one position for each text."""
        positions = integers(name, at)
        if positions.shape not in ((batch,), (batch, 1)):
            raise ValueError(f"{name}: got shape {positions.shape}, expected ({batch},), one for each text")
        return self._array(positions)

    def _head_loss_and_grad(self, g: Array, last_hidden: Array, input_ids: Any, targets: Any) -> HeadResult:
        starts, ends = (self._positions(name, at, last_hidden.shape[0]) for name, at in targets.items())
        logits = self.ops.linear(last_hidden, **self.params["qa_outputs"])
        halves = (logits[..., 0], logits[..., 1])
        loss = losses.answer_loss(self.ops, *halves, starts, ends)
        dlogits = self.xp.stack(losses.answer_loss_vjp(self.ops, g, *halves, starts, ends), axis=-1)
        dlast, outputs = linear_back(self.ops, dlogits, last_hidden, self.params["qa_outputs"])
        return loss, dlast, {"qa_outputs": outputs}
