"""Turn a torch attention module into a kernel."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.inputs import VECTORS, is_layer, kind_of, shapes
from refdiff.oracle.inputs.arrays import any_array, is_float
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.signature import parameter_names
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import attention_mask, frequencies

Numpy = np.ndarray[Any, Any]

NAMES: dict[str, tuple[str, ...]] = {
    "q_proj": ("q_proj",),
    "k_proj": ("k_proj",),
    "v_proj": ("v_proj",),
    "qkv": ("qkv", "qkv_proj"),
    "o_proj": ("o_proj", "out_proj", "proj"),
    "lambda_proj": ("lambda_proj",),
    "gate_proj": ("gate_proj", "g_proj"),
    "norm": ("groupnorm", "subln", "sub_norm"),
    "q_norm": ("q_norm", "q_layernorm"),
    "k_norm": ("k_norm", "k_layernorm"),
}
"""Submodules by their job, each with its names in transformers, unilm, timm and others."""
TENSORS = {
    **{name: name for name in VECTORS},
    "lambda_full": "lambda_full",
    "sinks": "sinks",
    "norm_weight": "norm.weight",
    "norm_bias": "norm.bias",
    "q_norm_weight": "q_norm.weight",
    "k_norm_weight": "k_norm.weight",
}
"""Other inputs, each with its parameter or buffer: the module's own, or that of a submodule, by its job in `NAMES`."""
PROJECTED = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": "gate_logits", "lambda_proj": "lambda_logits",
}  # fmt: skip
"""Projections, each with the input that is its output."""
MASKS, CACHES = ("attention_mask", "attn_mask"), ("cache", "past_key_values")
"""The names of the mask and cache arguments of forward methods."""
UNSUPPORTED = ("bias", "mask", "q_positions", "k_positions", "cu_seqlens_q")
SERVES = (
    "dense inputs and whole layers without mask, bias and positions, in which every query attends to a key; earlier "
    "keys if forward takes cache or past_key_values; padding if it takes attention_mask or attn_mask"
)


def module(attention: Any, spec: Spec | str, *, names: Mapping[str, str] | None = None) -> Callable[..., Any]:
    """Return a torch attention module as `kernel(inputs, dout=None)`, which the oracle judges like any other kernel.

    For the time of a call:

    - Its projections return q, k, v and the logits of λ and the gate from the inputs.
    - The λ vectors, sinks and norm weights of the inputs replace its parameters or buffers.
    - If there are more keys than queries, the earlier keys go through its cache.
    - Gradients are computed by autograd; they are 0 for an input that the module does not use.

    Inputs that the module cannot take, such as pages, are declined.

    Args:
        attention: a module whose forward takes hidden states first: transformers', timm's, unilm's or your own.
        spec: what it is meant to compute; a preset's name takes the dimensions of each call's inputs.
        names: your module's names of q_proj, k_proj, v_proj or qkv, o_proj, lambda_proj, gate_proj, norm, q_norm,
            k_norm, lambda_q1, …, lambda_full, sinks, norm_weight, norm_bias, q_norm_weight or k_norm_weight, where they
            are not in `NAMES` or `TENSORS`. A dotted name is inside a submodule: "inner.sink_logits".

    Raises:
        ValueError: the module lacks a submodule or parameter that the spec has an input for; it has a linear layer that
            may be an output projection under another name; `names` has an unknown name; or it is a module of
            transformers with flex attention, whose masks are other than a tensor.
    """
    torch, given = importlib.import_module("torch"), dict(names or {})
    if unknown := [name for name in given if name not in (*NAMES, *TENSORS)]:
        raise ValueError(f"names has {', '.join(unknown)}, but may have {', '.join((*NAMES, *TENSORS))}")
    if _implementation(attention) == "flex_attention":
        raise ValueError("the module has flex_attention, expected eager or sdpa; set attn_implementation")
    has = dict(attention.named_children())
    paths = {job: given.get(job) or next((n for n in usual if n in has), None) for job, usual in NAMES.items()}
    if not paths["qkv"] and not all(paths[f"{x}_proj"] for x in "qkv"):
        found = ", ".join(has) or "no submodule"
        raise ValueError(f"the module has {found}, expected q_proj, k_proj and v_proj, or qkv; name yours with names=")
    for name, place in TENSORS.items():
        job, _, last = place.rpartition(".")
        owner = f"{paths[job]}." if job and paths[job] else None if job else ""
        paths[name] = given.get(name) or (None if owner is None else owner + last)
    parameters = [name for name in shapes(resolve_spec(spec), {}) if name not in ("q", "k", "v")]
    projections = ["qkv"] if paths["qkv"] else ["q_proj", "k_proj", "v_proj"]
    jobs = {of: job for job, of in PROJECTED.items()}
    for name in (*projections, *(["o_proj"] if paths["o_proj"] else []), *parameters):
        _part(attention, paths, jobs.get(name, name), name)
    linear = [path for path, part in attention.named_modules() if hasattr(part, "out_features")]
    if not paths["o_proj"] and (left := [path for path in linear if path not in paths.values()]):
        raise ValueError(
            f"the module has no {' or '.join(NAMES['o_proj'])}, but the linear layers {', '.join(left)}, which nothing "
            f"replaces; name its output projection with names={{'o_proj': {left[0]!r}}}"
        )
    device = next((x.device for x in attention.parameters()), "cpu")

    def kernel(inputs: Mapping[str, Any], dout: Any = None) -> Any:
        arrays = {name: any_array(x, name) for name, x in inputs.items()}
        resolved = resolve_spec(spec, arrays)
        if not _is_supported(attention, resolved, arrays):
            return NotImplemented
        tensors = {name: _tensor(x, device) for name, x in arrays.items()}
        leaves = {n: x.requires_grad_(dout is not None) for n, x in tensors.items() if is_float(arrays[n].dtype)}
        with torch.set_grad_enabled(dout is not None):
            out = _run_module(attention, paths, resolved, arrays, tensors)
        if dout is None:
            return out.detach()
        dout = _tensor(any_array(dout, "dout"), device).to(out.dtype)
        grads = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves.values(), grads, strict=True)]
        return {"out": out.detach(), **{f"d{name}": g for name, g in zip(leaves, grads, strict=True)}}

    kernel.serves = SERVES  # type: ignore[attr-defined]
    return kernel


def _implementation(attention: Any) -> str:
    """Return the name of a module's attention implementation in transformers, "eager" for modules of others."""
    return getattr(getattr(attention, "config", None), "_attn_implementation", None) or "eager"


def _part(attention: Any, paths: Mapping[str, str | None], job: str, name: str) -> Any:
    """Return the submodule, parameter or buffer for an input; raise ValueError if the module has none."""
    if (path := paths[job]) is not None:
        found = functools.reduce(lambda part, step: getattr(part, step, None), path.split("."), attention)
        if not hasattr(found, "numel") and not hasattr(found, "forward"):
            raise ValueError(f"the module has no {path}, for {name}; give its own name with names={{{job!r}: ...}}")
        return found
    lacking = job if job in NAMES else TENSORS[job].partition(".")[0]
    raise ValueError(
        f"the spec has {name}, but the module has no {' or '.join(NAMES[lacking])}; give its own name with "
        f"names={{{lacking!r}: ...}}"
    )


def _is_supported(attention: Any, spec: Spec, arrays: Mapping[str, Numpy]) -> bool:
    """Whether a module can be called with these inputs: they must be dense, with the queries at the last keys."""
    unmasked = "key_mask" in arrays and not _argument_name(attention, MASKS)
    if kind_of(arrays) not in ("dense", "layer") or unmasked or any(name in arrays for name in UNSUPPORTED):
        return False
    if is_layer(arrays):
        B, T = arrays["x"].shape[:2]
        S = T + arrays.get("x_past", arrays["x"][:, :0]).shape[1]
    else:
        heads = [arrays[name].shape[1:4:2] for name in "qk"]
        if heads != [(spec.query_heads, spec.head_dim), (spec.key_heads, spec.head_dim)]:
            return False
        B, T, S = arrays["q"].shape[0], arrays["q"].shape[2], arrays["k"].shape[2]
    if 0 in (B, T, S) or S < T or (S > T and not _argument_name(attention, CACHES)):
        return False
    return bool(_visible(spec, arrays, T, S).any(axis=-1).all())


def _visible(spec: Spec, arrays: Mapping[str, Numpy], T: int, S: int) -> Numpy:
    """Return the attention mask of inputs, which may be those of a layer."""
    masks = {name: arrays[name] for name in ("key_mask",) if name in arrays}
    return attention_mask(spec, {"q": np.empty((1, 1, T, 0)), "k": np.empty((1, 1, S, 0)), **masks})


def _argument_name(attention: Any, names: tuple[str, ...]) -> str | None:
    """Return the first of the names that is an argument of the module's forward, or None."""
    arguments = parameter_names(attention.forward)
    return next((name for name in names if name in arguments), None)


def _run_module(
    attention: Any, paths: Mapping[str, str | None], spec: Spec, arrays: Mapping[str, Numpy], x: Mapping[str, Any]
) -> Any:
    """Run the module with the inputs in place of its parts; return the output in the layout of a kernel's."""
    torch = importlib.import_module("torch")
    layer, T = is_layer(arrays), x["x" if is_layer(arrays) else "q"].shape[-2]
    past = x["x_past"].shape[1] if "x_past" in x else 0 if layer else x["k"].shape[2] - T
    cache = importlib.import_module("transformers").DynamicCache() if past else None
    given = {job: x[name] if x[name].ndim == 3 else x[name].transpose(1, 2).flatten(2)
             for job, name in PROJECTED.items() if name in x}  # fmt: skip
    for part in [slice(0, past), slice(past, past + T)] if past else [slice(0, T)]:
        last = part.stop == past + T  # the first of two parts only fills the cache
        functions: dict[str, Callable[[Any], Any]] = {}
        if layer:
            hidden = x["x"] if last else x["x_past"]
            for name in (name.removesuffix(".weight") for name in x if name.endswith("_proj.weight")):
                both = x[f"{name}.weight"], x.get(f"{name}.bias")
                functions[name] = functools.partial(lambda y, both: torch.nn.functional.linear(y, *both), both=both)
        else:  # earlier tokens need keys and values only: their queries may be anything
            for name, y in given.items():
                now = y[:, part] if name in ("k_proj", "v_proj") else y if last else y[:, :1].expand(-1, past, -1)
                functions[name] = functools.partial(lambda _, now: now, now=now)
            hidden = torch.zeros_like(functions["q_proj"](None))
            if paths["o_proj"]:
                functions["o_proj"] = lambda y: y
        visible = _visible(spec, arrays, T, past + T) if last else np.tri(past, dtype=np.bool_)[None, None]
        arguments = _arguments(attention, spec, hidden, part, visible, cache)
        out = _call_with(attention, paths, functions, x, hidden, arguments)
        out = out[0] if isinstance(out, tuple) else out
    return out if layer else out.reshape(*out.shape[:2], spec.heads, spec.out_dim).transpose(1, 2)


def _call_with(
    attention: Any, paths: Mapping[str, str | None], functions: dict[str, Callable[[Any], Any]], x: Mapping[str, Any],
    hidden: Any, arguments: Mapping[str, Any],
) -> Any:  # fmt: skip
    """Call the module with functions as its projections and with inputs as its parameters and buffers."""
    torch, tensors = importlib.import_module("torch"), {}
    if paths["qkv"]:
        three = [functions.pop(f"{name}_proj") for name in "qkv"]
        functions["qkv"] = lambda y: torch.cat([f(y) for f in three], dim=-1)
    for name in TENSORS:
        if name in x:
            own = _part(attention, paths, name, name)
            if own.numel() != x[name].numel():
                has, given = tuple(own.shape), tuple(x[name].shape)
                raise ValueError(f"{name} has shape {given}, and the module's {has}: the sizes must be equal")
            tensors[str(paths[name])] = x[name].reshape(own.shape)
    with ExitStack() as replaced:
        for job, function in functions.items():
            replaced.enter_context(mock.patch.object(_part(attention, paths, job, job), "forward", function))
        return torch.func.functional_call(attention, tensors, (hidden,), dict(arguments))


def _arguments(attention: Any, spec: Spec, hidden: Any, part: slice, visible: Numpy, cache: Any) -> dict[str, Any]:
    """Return the arguments of a module's forward besides hidden states, by their names."""
    torch = importlib.import_module("torch")
    names = parameter_names(attention.forward)
    found: dict[str, Any] = {}
    positions = torch.arange(part.start, part.stop, device=hidden.device)[None]
    rates, factor = frequencies(spec, ops_for())
    angles = positions[..., None] * torch.tensor(rates, dtype=torch.float32, device=hidden.device)

    def cos_sin(angles: Any) -> tuple[Any, ...]:
        return tuple((factor * f(angles)).to(hidden.dtype) for f in (torch.cos, torch.sin))

    if "position_embeddings" in names:
        found["position_embeddings"] = cos_sin(torch.cat([angles, angles], dim=-1))
    if "position_ids" in names:
        found["position_ids"] = positions
    if cache is not None:
        found[str(_argument_name(attention, CACHES))] = cache
    if "rel_pos" in names:  # unilm's
        found["rel_pos"] = cos_sin(angles[0])
    if mask_name := _argument_name(attention, MASKS):
        visible = np.broadcast_to(visible, (len(hidden), 1, *visible.shape[-2:]))
        hidden_keys = torch.tensor(~visible, device=hidden.device)
        added = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device)
        added.masked_fill_(hidden_keys, torch.finfo(hidden.dtype).min)
        found[mask_name] = None if _is_default_mask(attention, spec, visible) else added
    return found


def _is_default_mask(attention: Any, spec: Spec, visible: Numpy) -> bool:
    """Whether a module is expected to apply this mask if it is given none.

    Eager attention and modules of other libraries mask nothing then; transformers' other implementations are causal.
    """
    T, S = visible.shape[-2:]
    if spec.causal == "none" or T == 1:
        return bool(visible.all())
    return _implementation(attention) != "eager" and T == S and bool((visible == np.tri(T, dtype=np.bool_)).all())


def _tensor(x: Numpy, device: Any) -> Any:
    """Copy an array, bfloat16 included, into a new tensor."""
    torch, x = importlib.import_module("torch"), np.array(x, order="C")
    if x.dtype.name == "bfloat16":
        return torch.tensor(x.view(np.int16), device=device).view(torch.bfloat16)
    return torch.tensor(x, device=device)
