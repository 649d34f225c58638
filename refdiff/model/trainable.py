"""The loss and the gradients of all weights, for the four classes with a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from refdiff.arrays import Array, device
from refdiff.model import diffllama_vjp, inputs
from refdiff.model.call import model_call
from refdiff.model.diffllama import Context
from refdiff.model.pretrained import PreTrainedModel
from refdiff.model.weights import flatten, nest

HeadResult = tuple[Array, Array, dict[str, Any]]
"""A loss (), its gradient in the last hidden states (B, T, D), and in the parameters of the head."""


class TrainableModel(PreTrainedModel):
    """A DiffLlama whose head has a loss; use one of its subclasses."""

    head_inputs: ClassVar[tuple[str, ...]] = ("labels",)

    @model_call
    def loss_and_grad(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Compute the loss of a call with these labels, and its gradients for every weight.

        As in a call with `use_cache=False`, `position_ids` that restart keep packed sequences
        apart. The padding token's embedding gets no gradient from being looked up, as in
        transformers.

        Shapes:
            the arguments of a call -> a scalar (), a nested dict like `params`

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: as in a call.
            labels: as in a call; required.

        Raises:
            ValueError: no labels, or inputs that a call refuses too.
        """
        return self._loss_and_grad(input_ids, attention_mask, position_ids, inputs_embeds, {"labels": labels})

    def _loss_and_grad(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, inputs_embeds: Any, targets: dict[str, Any]
    ) -> tuple[Array, dict[str, Any]]:
        for name, value in targets.items():
            if value is None:
                raise ValueError(f"{name}: got none, expected the targets of the loss")
        if self.base_params["embed_tokens"]["weight"].dtype != self.base_params["norm"]["weight"].dtype:
            raise ValueError(
                'weights: got "stored", expected "expanded" for gradients; load the model with weights="expanded"'
            )
        hidden, context = self._embed(
            input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, use_cache=False
        )
        ids = None if input_ids is None else inputs.token_ids(input_ids)
        labels = targets.get("labels", targets)
        B, T = hidden.shape[:2]
        parts = self.backend.split_batch(B, T) if self.backend.is_own(context.ops) else []
        shares = self._shares(labels, parts, (B, T)) if len(parts) > 1 else None
        if shares is None:
            return self._one_loss_and_grad(hidden, context, ids, labels, 1.0)
        return self._sum_over_parts(parts, shares, hidden, context, ids, labels)

    def _one_loss_and_grad(
        self, hidden: Array, context: Context, ids: inputs.IntArray | None, labels: Any, share: float
    ) -> tuple[Array, dict[str, Any]]:
        """Compute loss and gradients of one part of the batch, both times `share`."""
        saving_ops = self.backend.select("saving_ops", context.ops)
        if saving_ops is not None:
            context = replace(context, ops=saving_ops())
        last_hidden, back = diffllama_vjp.diffllama(self.base_params, hidden, context)
        g = self.xp.full((), share, dtype=hidden.dtype, device=device(hidden))
        loss, dlast, head = self._head_loss_and_grad(g, last_hidden, ids, labels)
        dhidden, base = back(dlast)
        table = self._embedding_grad(dhidden, ids)
        if "lm_head" in head and "lm_head" not in self.params:  # one matrix, used twice
            table = table + head.pop("lm_head")["weight"]
        base["embed_tokens"] = {"weight": table}
        grads = base if self.base_prefix is None else {self.base_prefix: base, **head}
        by_name = flatten(grads)
        return loss * g, nest({name: by_name[name] for name in flatten(self.params)})

    def _sum_over_parts(
        self,
        parts: Sequence[slice],
        shares: Sequence[float],
        hidden: Array,
        context: Context,
        ids: inputs.IntArray | None,
        labels: Any,
    ) -> tuple[Array, dict[str, Any]]:
        """Sum loss and gradients over parts of the batch, always in the same order.

        Equation:
            a loss that is a mean over n targets is Σᵢ (nᵢ / n) lossᵢ over parts of nᵢ targets, and so is its gradient
        """
        total: list[tuple[Array, dict[str, Any]]] = []

        def compute(part_and_share: tuple[slice, float]) -> tuple[Array, dict[str, Any]]:
            part, share = part_and_share
            own = None if ids is None else ids[part]
            return self._one_loss_and_grad(hidden[part].copy("K"), context.select_batch(part), own, labels[part], share)

        def accumulate(result: tuple[Array, dict[str, Any]]) -> None:
            if not total:
                total.append(result)
                return
            (loss, grads), (more_loss, more) = total[0], result
            totals = flatten(grads)
            for name, part in flatten(more).items():
                totals[name] += part  # in place, but for a NumPy scalar
            total[0] = loss + more_loss, nest(totals)

        counted = [(part, share) for part, share in zip(parts, shares, strict=True) if share]
        self.backend.map_in_order(compute, counted, accumulate)
        return total[0]

    @abstractmethod
    def _head_loss_and_grad(self, g: Array, last_hidden: Array, input_ids: Any, targets: Any) -> HeadResult:
        """Compute the head's loss and its gradients; `g` is the loss's gradient, `targets` the labels or positions."""

    def _shares(self, labels: Any, parts: Sequence[slice], shape: tuple[int, int]) -> list[float] | None:
        """Return each part's share of the loss; None if the loss cannot be split."""
        return None

    def _embedding_grad(self, g: Array, input_ids: Any) -> Array:
        table = self.base_params["embed_tokens"]["weight"]
        if input_ids is None:
            return self.xp.zeros_like(table)
        ids, pad = self._array(inputs.token_ids(input_ids)), self.config.pad_token_id
        if pad is not None and bool(self.xp.any(ids == pad)):
            g = self.xp.where((ids == pad)[..., None], self.xp.zeros_like(g), g)
        grad: Array = self.ops.embedding_vjp(g, ids, table)[1]
        return grad
