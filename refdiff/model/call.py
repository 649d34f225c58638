"""One call of a model: from the user's inputs to the hidden states of the base model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, ParamSpec, TypedDict, TypeVar

from numpy.typing import NDArray

from refdiff.arrays import Array, from_numpy
from refdiff.backends import Backend, Ops
from refdiff.messages import refuse_arguments, show_value, warn
from refdiff.model import inputs
from refdiff.model.cache import KVCache
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.diffllama import Context, diffllama
from refdiff.model.outputs import ModelOutput
from refdiff.model.recorder import Recorder

P = ParamSpec("P")
R = TypeVar("R")

ARGUMENTS = """\
Args:
    input_ids: (B, T) integers, or in their place `inputs_embeds` (B, T, D).
    attention_mask: (B, S) of 1 and 0, S counting the tokens in the cache; or
        (B, 1 or H, T, S), boolean "may see" or added to the scores. Without it every token
        sees itself and all before it.
    position_ids: (B, T); without them positions count on from the cache.
    cache: the `out.cache` of an earlier call, or a new `KVCache`; `use_cache` says whether
        to make one (config.use_cache). `past_key_values` is its older name.
    output_attentions: add `attentions`, `differential_attentions` and `lambdas`; the layers
        then run one by one: slower, logits equal up to rounding error.
    output_hidden_states: add `hidden_states`, in the same way; an index or several keep
        only those.
    return_dict: False gives the results as a tuple."""
RAISES = """\
Raises:
    ValueError: an input of another kind or shape; the message has both.
    IndexError: a token id outside the vocabulary."""
"""What every class takes when it is called, and raises, for the docstrings of all of them."""


_POSITIONAL = ("input_ids", "attention_mask", "position_ids", "cache", "inputs_embeds", "use_cache")


class ModelInputs(TypedDict, total=False):
    """The keyword arguments that every class takes when it is called, beside those that have a position."""

    past_key_values: KVCache | None
    output_attentions: bool | None
    output_hidden_states: Any
    return_dict: bool | None


def model_call(call: Callable[P, R]) -> Callable[P, R]:
    """Run a call in the backend's scope of one pass, and return a tuple where the caller asks for one."""

    @functools.wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        model: Any = args[0]
        input_ids = args[1] if len(args) > 1 else kwargs.get("input_ids")
        with model.backend.inference_scope(model.base_params, input_ids):
            result: Any = call(*args, **kwargs)
        returned: R = result.to_tuple() if kwargs.get("return_dict") is False else result
        return returned

    return called


def document_inputs(call: Callable[P, R]) -> Callable[P, R]:
    """Add what every class takes to the docstring of a `__call__`, before its own arguments, and what it raises."""
    text, _, own = inspect.cleandoc(call.__doc__ or "").partition("\n\nArgs:\n")
    call.__doc__ = f"{text}\n\n{ARGUMENTS}\n{own}".rstrip() + f"\n\n{RAISES}\n"
    return call


class CallableModel:
    """What a call needs of a model: its weights in the memory of one device, and the layers that compute on them."""

    base_prefix: ClassVar[str | None] = "model"
    head_inputs: ClassVar[tuple[str, ...]] = ()  # what a call takes beside the arguments of every class
    config: DiffLlamaConfig
    params: dict[str, Any]
    xp: Any
    device: Any
    backend: Backend
    ops: Ops
    warned_of_length: bool

    @property
    def base_params(self) -> dict[str, Any]:
        """The weights of the base model, without those of the head."""
        params: dict[str, Any] = self.params if self.base_prefix is None else self.params[self.base_prefix]
        return params

    def context(self, ops: Ops, cos: Array, sin: Array, **others: Any) -> Context:
        """Return what the layers of one call share: functions, RoPE's factors, `Context`'s fields."""
        return Context(self.config, ops, cos, sin, **others)

    def _array(self, x: NDArray[Any]) -> Array:
        return from_numpy(x, self.xp, self.device)

    forward: ClassVar[Any]
    """`model.forward(…)` is `model(…)`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):
            cls.forward = cls.__call__

    def _forward(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any,
        cache: KVCache | None,
        inputs_embeds: Any,
        use_cache: bool | None,
        given: ModelInputs,
        last: int = 0,
    ) -> ModelOutput:
        """Run the base model and return the hidden states of the `last` tokens (0 = all) and the other results.

        Raises:
            TypeError: an argument that no model takes.
        """
        if given:
            known = [*_POSITIONAL, *self.head_inputs, *ModelInputs.__annotations__]
            refuse_arguments(type(self).__name__, given.keys() - ModelInputs.__annotations__, known)
        if (older := given.get("past_key_values")) is not None:
            if cache is not None:
                raise ValueError("cache, past_key_values: got both, expected one of them; both name the cache")
            cache = older
        # As in transformers, the fields of these names in config.json are the defaults.
        attentions = given.get("output_attentions", self.config.output_attentions)
        hidden_states = given.get("output_hidden_states", self.config.output_hidden_states)
        if hidden_states and not isinstance(hidden_states, bool):
            hidden_states = inputs.integers("output_hidden_states", hidden_states).reshape(-1).tolist()
        hidden, context = self._embed(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache)
        recorder = None
        if attentions or hidden_states:
            recorder = Recorder(self.base_params, attentions=bool(attentions), hidden_states=hidden_states or False)
            context.ops = recorder.wrap(context.ops)
        fast_diffllama = self.backend.select("fast_diffllama", context.ops)
        if fast_diffllama is not None:
            hidden = fast_diffllama(self.base_params, hidden, context, last or None)
        else:
            hidden = diffllama(self.base_params, hidden, context)[:, -last:, :]
        out = ModelOutput(last_hidden_state=hidden, cache=context.cache)
        if recorder is not None:
            recorder.add_to(out, self.config.variant)
        return out

    def _embed(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any = None,
        cache: KVCache | None = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
    ) -> tuple[Array, Context]:
        """Convert the user's inputs to embeddings and the context of the layers."""
        hidden = self._embeddings(input_ids, inputs_embeds)
        config, (B, T, _) = self.config, hidden.shape
        if not isinstance(cache, KVCache | None):
            raise TypeError(f"cache: got {type(cache).__name__}, expected a KVCache, such as the output's cache")
        if not isinstance(use_cache, bool | None):
            raise TypeError(f"use_cache: got {show_value(use_cache)}, expected True, False or None")
        if cache is None and (config.use_cache if use_cache is None else use_cache):
            cache = KVCache(config.num_hidden_layers)
        if cache is not None and cache.num_layers != config.num_hidden_layers:
            raise ValueError(
                f"cache: got a KVCache of {cache.num_layers} layers, expected {config.num_hidden_layers}, as the model "
                "has; make one for this model"
            )
        past = 0 if cache is None else len(cache)
        positions = inputs.positions(position_ids, B, T, past)
        context = self.context(self.ops, *self._cos_sin(positions, hidden.dtype), cache=cache)
        if attention_mask is not None:
            self._set_mask(context, attention_mask, B, T, past + T)
        # Without a cache, transformers reads positions that restart as several packed sequences.
        elif position_ids is not None and cache is None and (positions[:, 1:] - positions[:, :-1] != 1).any():
            context.mask = self.ops.packed_mask(self._array(positions))
        return hidden, context

    def _embeddings(self, input_ids: Any, inputs_embeds: Any) -> Array:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: got both or none, expected one of them")
        config, p = self.config, self.base_params
        dtype = p["norm"]["weight"].dtype
        if inputs_embeds is None:
            ids = inputs.token_ids(input_ids)
            inputs.check_known(ids, config.vocab_size)
            hidden = self.ops.embedding(self._array(ids), **p["embed_tokens"])
            return self.xp.astype(hidden, dtype, copy=False)  # the table may be kept in 16 bits
        hidden = self.xp.astype(self._array(inputs.numbers("inputs_embeds", inputs_embeds)), dtype)
        if hidden.ndim != 3 or hidden.shape[2] != config.hidden_size:
            raise ValueError(f"inputs_embeds: got shape {tuple(hidden.shape)}, expected (B, T, {config.hidden_size})")
        return hidden

    def _cos_sin(self, positions: inputs.IntArray, dtype: Any) -> tuple[Array, Array]:
        """Compute RoPE's factors, and warn once where positions are beyond those that the model was made for."""
        config = self.config
        length, longest = int(positions.max()) + 1, config.max_position_embeddings
        if length > longest and not self.warned_of_length:
            self.warned_of_length = True
            warn(
                f"the text is longer than the {longest} positions that this model was made for "
                "(max_position_embeddings): what follows is computed all the same, and may be worse"
            )
        frequencies, scale = self.ops.rope_frequencies(config.rope_parameters, config.head_dim, longest, length)
        cos, sin = self.ops.rope_cos_sin(self._array(positions), frequencies, scale, dtype)
        return cos, sin

    def _set_mask(self, context: Context, attention_mask: Any, B: int, T: int, S: int) -> None:
        """Set which keys each query may attend to: by a 2-D padding mask beside the causal one, or by a 4-D mask."""
        given = inputs.host("attention_mask", attention_mask)
        if given.ndim == 2:
            seen = inputs.two_dimensional_mask(given, B, S)
            context.mask = None if seen is None else self.ops.padding_mask(self._array(seen))
        elif given.ndim == 4:
            mask, bias = inputs.four_dimensional_mask(given, B, self.config.num_query_heads, T, S)
            context.causal = False
            context.mask = None if mask is None else self._array(mask)
            context.bias = None if bias is None else self.xp.astype(self._array(bias), context.cos.dtype)
        else:
            raise ValueError(f"attention_mask: got shape {given.shape}, expected (B, S) or (B, 1 or H, T, S)")
