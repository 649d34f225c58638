"""A loss and the gradients of all weights: what the four classes with a head share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from refdiff.arrays import Array, device
from refdiff.model import diffllama_vjp, inputs
from refdiff.model.pretrained import PreTrainedModel, one_pass

HeadResult = tuple[Array, Array, dict[str, Any]]
"""A loss (), its gradient in the last hidden states (B, T, D), and in the parameters of the head."""


class TrainableModel(PreTrainedModel):
    """A DiffLlama whose head has a loss; use one of its subclasses."""

    @one_pass
    def loss_and_grad(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Compute the loss that a call with these labels has, and its gradients by every weight.

        As in a call with `use_cache=False`, `position_ids` that restart keep sequences in one row apart. The padding
        token's embedding gets no gradient from being looked up, as in transformers.

        Shapes:
            the arguments of a call -> a scalar (), a nested dict like `params`

        Raises:
            ValueError: no labels, or inputs that a call refuses too.
        """
        return self._loss_and_grad(input_ids, attention_mask, position_ids, inputs_embeds, {"labels": labels})

    def _loss_and_grad(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, inputs_embeds: Any, targets: dict[str, Any]
    ) -> tuple[Array, dict[str, Any]]:
        for name, value in targets.items():
            if value is None:
                raise ValueError(f"loss_and_grad needs {name}: without it there is no loss")
        if self.base_params["embed_tokens"]["weight"].dtype != self.base_params["norm"]["weight"].dtype:
            raise ValueError(
                'loss_and_grad needs weights in the precision of the gradients: load with weights="expanded"'
            )
        hidden, context = self._start(input_ids, attention_mask, position_ids, None, inputs_embeds, False)
        last, back = diffllama_vjp.diffllama(self.base_params, hidden, context)
        loss, dlast, head = self._head_loss_and_grad(last, input_ids, targets.get("labels", targets))
        dhidden, base = back(dlast)
        table = self._embedding_grad(dhidden, input_ids)
        if "lm_head" in head and "lm_head" not in self.params:  # one matrix, used twice
            table = table + head.pop("lm_head")["weight"]
        base["embed_tokens"] = {"weight": table}
        grads = base if self.base_prefix is None else {self.base_prefix: base, **head}
        return loss, _in_order_of(self.params, grads)

    @abstractmethod
    def _head_loss_and_grad(self, last: Array, input_ids: Any, labels: Any) -> HeadResult:
        """Do what the head does with the last hidden states, and the same backwards."""

    def _one(self, like: Array) -> Array:
        """The gradient of a loss by itself."""
        return self.xp.ones((), dtype=like.dtype, device=device(like))

    def _embedding_grad(self, g: Array, input_ids: Any) -> Array:
        table = self.base_params["embed_tokens"]["weight"]
        if input_ids is None:
            return self.xp.zeros_like(table)
        ids, pad = self._array(inputs.token_ids(input_ids)), self.config.pad_token_id
        if pad is not None and bool(self.xp.any(ids == pad)):
            g = self.xp.where((ids == pad)[..., None], self.xp.zeros_like(g), g)
        grad: Array = self.ops.embedding_vjp(g, ids, table)[1]
        return grad


def _in_order_of(params: Any, grads: Any) -> Any:
    """The gradients in the order in which the parameters stand."""
    if isinstance(params, dict):
        return {name: _in_order_of(params[name], grads[name]) for name in params}
    if isinstance(params, list):
        return [_in_order_of(p, g) for p, g in zip(params, grads, strict=True)]
    return grads
