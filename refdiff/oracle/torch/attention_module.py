"""Turn a torch attention module into a kernel; helpers for flex attention as transformers calls it."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.inputs import VECTORS, is_layer, kind_of, shapes
from refdiff.oracle.inputs.arrays import any_array, is_float
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.signature import parameter_names
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import attention_mask, frequencies

FLEX = "flex_attention"
"""The name of torch's flex attention in transformers."""


def implementation_of(attention: Any) -> str:
    """Return the name of a module's attention implementation in transformers, "" for a module of another library."""
    return getattr(getattr(attention, "config", None), "_attn_implementation", None) or ""


@contextmanager
def uncompiled(implementation: str, device: Any) -> Iterator[None]:
    """Run flex attention uncompiled on a CPU, where torch would take half a minute to compile it."""
    if implementation != FLEX or str(device) != "cpu":
        yield
        return
    with importlib.import_module("torch").compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile", UserWarning)
        yield


def block_mask(visible: Any) -> Any:
    """Return flex attention's BlockMask of a boolean tensor (B, 1, T, S), true where a query attends to a key."""
    create = importlib.import_module("torch.nn.attention.flex_attention").create_block_mask
    B, _, T, S = visible.shape
    return create(lambda b, _, t, s: visible[b, 0, t, s], B=B, H=None, Q_LEN=T, KV_LEN=S, device=visible.device)


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
QUERY_PROJECTIONS = {"lambda_logits": "lambda_proj", "gate_logits": "gate_proj"}
"""Inputs that are outputs of a projection of the query-side hidden states, each with the projection's job."""
MASKS, CACHES = ("attention_mask", "attn_mask"), ("cache", "past_key_values")
"""The names of the mask and cache arguments of forward methods."""
UNSUPPORTED = ("bias", "mask", "q_positions", "k_positions", "cu_seqlens_q")
SERVES = (
    "dense inputs and whole layers without mask, bias and positions, in which every query attends to a key; earlier "
    "keys if forward takes cache or past_key_values; padding if it takes attention_mask or attn_mask"
)


def module(attention: Any, spec: Spec | str, *, names: Mapping[str, str] | None = None) -> Callable[..., Any]:
    """Return a torch attention module as `kernel(inputs, dout=None)`, which the oracle judges like any other kernel.

    Each call runs a copy of the module:

    - Its projections return q, k, v and the logits of λ and the gate from the inputs.
    - The λ vectors, sinks and norm weights of the inputs replace its parameters or buffers.
    - If there are more keys than queries, the earlier keys go through its cache.
    - Gradients are computed by autograd; they are 0 for an input that the module does not use.

    Inputs that the module cannot take, such as pages, are declined. So are gradients of flex attention on a CPU, which
    torch does not implement.

    Args:
        attention: a module whose forward takes hidden states first: transformers', timm's, unilm's or your own.
        spec: what it is meant to compute; a preset's name takes the dimensions of each call's inputs.
        names: your module's names of q_proj, k_proj, v_proj or qkv, o_proj, lambda_proj, gate_proj, norm, q_norm,
            k_norm, lambda_q1, …, lambda_full, sinks, norm_weight, norm_bias, q_norm_weight or k_norm_weight, where they
            are not in `NAMES` or `TENSORS`. A dotted name is inside a submodule: "inner.sink_logits".

    Raises:
        ValueError: the module lacks a submodule or parameter that the spec has an input for; it has a linear layer that
            may be an output projection under another name; or `names` has an unknown name.
    """
    given = dict(names or {})
    if unknown := [name for name in given if name not in (*NAMES, *TENSORS)]:
        raise ValueError(f"names has {', '.join(unknown)}, but may have {', '.join((*NAMES, *TENSORS))}")
    has = attention._modules
    paths = {job: given.get(job) or next((n for n in usual if n in has), None) for job, usual in NAMES.items()}
    if not paths["qkv"] and not all(paths[f"{x}_proj"] for x in "qkv"):
        found = ", ".join(name for name, _ in attention.named_children()) or "no submodule"
        raise ValueError(f"the module has {found}, expected q_proj, k_proj and v_proj, or qkv; name yours with names=")
    paths |= {name: given.get(name) or _tensor_path(paths, place) for name, place in TENSORS.items()}
    parameters = [name for name in shapes(resolve_spec(spec), {}) if name not in ("q", "k", "v")]
    projections = ["qkv"] if paths["qkv"] else ["q_proj", "k_proj", "v_proj"]
    for name in (*projections, *(["o_proj"] if paths["o_proj"] else []), *parameters):
        _require_place(attention, paths, name)
    if not paths["o_proj"] and (left := [path for path in _linears(attention) if path not in paths.values()]):
        raise ValueError(
            f"the module has no {' or '.join(NAMES['o_proj'])}, but the linear layers {', '.join(left)}, which nothing "
            f"replaces; name its output projection with names={{'o_proj': {left[0]!r}}}"
        )
    device = next((x.device for x in attention.parameters()), "cpu")
    forward_only = implementation_of(attention) == FLEX and str(device) == "cpu"

    def kernel(inputs: Mapping[str, Any], dout: Any = None) -> Any:
        arrays = {name: any_array(x, name) for name, x in inputs.items()}
        resolved = resolve_spec(spec, arrays)
        if not _is_supported(attention, resolved, arrays) or (forward_only and dout is not None):
            return NotImplemented
        tensors = {name: _tensor(x, device) for name, x in arrays.items()}
        leaves = {n: x.requires_grad_(dout is not None) for n, x in tensors.items() if is_float(arrays[n].dtype)}
        torch = importlib.import_module("torch")
        with torch.set_grad_enabled(dout is not None), uncompiled(implementation_of(attention), device):
            out = _run_module(attention, paths, resolved, arrays, tensors)
        if dout is None:
            return out.detach()
        dout = _tensor(any_array(dout, "dout"), device).to(out.dtype)
        grads = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves.values(), grads, strict=True)]
        return {"out": out.detach(), **{f"d{name}": g for name, g in zip(leaves, grads, strict=True)}}

    serves = f"{SERVES}; no gradients: torch has none of flex attention on a CPU" if forward_only else SERVES
    kernel.serves = serves  # type: ignore[attr-defined]
    return kernel


def _linears(part: Any, above: str = "") -> Iterator[str]:
    """Yield the paths of a module's linear layers."""
    for name, child in part._modules.items():
        if hasattr(child, "out_features"):
            yield above + name
        elif child is not None:
            yield from _linears(child, f"{above}{name}.")


def _tensor_path(paths: Mapping[str, str | None], place: str) -> str | None:
    """Return the path of a value of `TENSORS`, given the paths of the submodules; None without its submodule."""
    job, _, name = place.rpartition(".")
    owner = paths[job] if job else ""
    return None if owner is None else f"{owner}.{name}".removeprefix(".")


def _require_place(attention: Any, paths: Mapping[str, str | None], name: str) -> None:
    """Raise ValueError if a module has no submodule, parameter or buffer for an input."""
    job = QUERY_PROJECTIONS.get(name, name)
    path = paths[job]
    if path is not None and _find_part(attention, path) is not None:
        return
    if path is not None:
        raise ValueError(f"the module has no {path}, for {name}; give its own name with names={{{job!r}: ...}}")
    lacking = job if job in NAMES else TENSORS[job].partition(".")[0]
    raise ValueError(
        f"the spec has {name}, but the module has no {' or '.join(NAMES[lacking])}; give its own name with "
        f"names={{{lacking!r}: ...}}"
    )


def _find_part(attention: Any, path: str) -> Any:
    """Return the submodule, parameter or buffer at a path, or None."""
    *owners, name = path.split(".")
    for owner in owners:
        attention = attention._modules.get(owner)
        if attention is None:
            return None
    return next((x for x in (table.get(name) for table in _tables(attention)) if x is not None), None)


def _tables(attention: Any) -> tuple[dict[str, Any], ...]:
    return attention._modules, attention._parameters, attention._buffers


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
    return bool(attention_mask(spec, _mask_inputs(arrays, T, S)).any(axis=-1).all())


def _mask_inputs(arrays: Mapping[str, Numpy], T: int, S: int) -> dict[str, Numpy]:
    """Return empty core inputs with the attention mask of `arrays`, which may be those of a layer."""
    masks = {name: arrays[name] for name in ("key_mask",) if name in arrays}
    return {"q": np.empty((1, 1, T, 0)), "k": np.empty((1, 1, S, 0)), **masks}


def _argument_name(attention: Any, names: tuple[str, ...]) -> str | None:
    """Return the first of the names that is an argument of the module's forward, or None."""
    arguments = parameter_names(attention.forward)
    return next((name for name in names if name in arguments), None)


def _run_module(
    attention: Any, paths: Mapping[str, str | None], spec: Spec, arrays: Mapping[str, Numpy], x: Mapping[str, Any]
) -> Any:
    """Run a copy of the module in which the inputs replace its parts; return the output in the layout of a kernel's."""
    torch = importlib.import_module("torch")
    layer = is_layer(arrays)
    T = x["x"].shape[1] if layer else x["q"].shape[2]
    past = x["x_past"].shape[1] if "x_past" in x else 0 if layer else x["k"].shape[2] - T
    parts = [slice(0, past), slice(past, past + T)] if past else [slice(0, T)]
    cache = importlib.import_module("transformers").DynamicCache() if past else None
    given = {} if layer else _projected(x)
    for n, part in enumerate(parts):
        last = n == len(parts) - 1  # the first of two parts only fills the cache
        if layer:
            hidden = x["x"] if last else x["x_past"]
            names = [name.removesuffix(".weight") for name in x if name.endswith("_proj.weight")]
            projections = {name: _linear(x, name) for name in names}
        else:  # earlier tokens need keys and values only: their queries may be anything
            now = {name: y[:, part] if name in ("k_proj", "v_proj") else y if last else y[:, :1].expand(-1, past, -1)
                   for name, y in given.items()}  # fmt: skip
            hidden = torch.zeros_like(now["q_proj"])
            projections = {name: _constant(y) for name, y in now.items()}
            if paths["o_proj"]:
                projections["o_proj"] = lambda y: y
        mask = attention_mask(spec, _mask_inputs(arrays, T, past + T)) if last else None
        clone = _replace_parts(attention, paths, projections, x)
        out = clone(hidden, **_arguments(attention, spec, hidden, part, mask, cache))
        out = out[0] if isinstance(out, tuple) else out
    return out if layer else out.reshape(*out.shape[:2], spec.heads, spec.out_dim).transpose(1, 2)


def _projected(x: Mapping[str, Any]) -> dict[str, Any]:
    """Return the output of each projection from core inputs, (B, T or S, width)."""
    heads = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": "gate_logits"}
    given = {job: x[name].transpose(1, 2).flatten(2) for job, name in heads.items() if name in x}
    return given | ({"lambda_proj": x["lambda_logits"]} if "lambda_logits" in x else {})


def _linear(x: Mapping[str, Any], name: str) -> Callable[[Any], Any]:
    torch = importlib.import_module("torch")
    return lambda y: torch.nn.functional.linear(y, x[f"{name}.weight"], x.get(f"{name}.bias"))


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _replace_parts(
    attention: Any, paths: Mapping[str, str | None], projections: Mapping[str, Callable[[Any], Any]],
    x: Mapping[str, Any],
) -> Any:  # fmt: skip
    """Return a copy of the module whose projections are functions, and whose parameters and buffers are inputs."""
    torch = importlib.import_module("torch")
    clone = _copy(attention)
    functions = dict(projections)
    if paths["qkv"]:
        three = [functions.pop(f"{name}_proj") for name in "qkv"]
        functions["qkv"] = lambda y: torch.cat([f(y) for f in three], dim=-1)
    for job, function in functions.items():
        _require_place(attention, paths, job)
        _replace_part(clone, str(paths[job]), function, job)
    for name in TENSORS:
        if name in x:
            _replace_part(clone, str(paths[name]), x[name], name)
    return clone


def _replace_part(clone: Any, path: str, value: Any, name: str) -> None:
    """Replace a module or tensor in a copy of a module; submodules on the path are copied first."""
    *owners, last = path.split(".")
    for owner in owners:
        clone._modules[owner] = _copy(clone._modules[owner])
        clone = clone._modules[owner]
    table = next(table for table in _tables(clone) if table.get(last) is not None)
    if table is not clone._modules:
        if table[last].numel() != value.numel():
            has, given = tuple(table[last].shape), tuple(value.shape)
            raise ValueError(f"{name} has shape {given}, and the module's {path} {has}: the sizes must be equal")
        value = value.reshape(table[last].shape)
    table[last] = value


def _copy(part: Any) -> Any:
    """Copy a module with its own tables of submodules, parameters and buffers, whose entries are shared."""
    clone = copy.copy(part)
    clone.__dict__.update({name: dict(getattr(part, name)) for name in ("_modules", "_parameters", "_buffers")})
    return clone


def _arguments(attention: Any, spec: Spec, hidden: Any, part: slice, mask: Numpy | None, cache: Any) -> dict[str, Any]:
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
    visible = np.tri(hidden.shape[1], dtype=np.bool_)[None, None] if mask is None else mask
    if mask_name := _argument_name(attention, MASKS):
        visible = np.broadcast_to(visible, (len(hidden), 1, *visible.shape[-2:]))
        if implementation_of(attention) == FLEX:  # it is never causal by itself
            found[mask_name] = block_mask(torch.tensor(visible, device=hidden.device))
        else:
            found[mask_name] = None if _is_default_mask(attention, spec, visible) else _additive_mask(visible, hidden)
    return found


def _additive_mask(visible: Numpy, hidden: Any) -> Any:
    """Return a mask that is added to scores: 0 where a query attends, else the lowest number of the type."""
    torch = importlib.import_module("torch")
    mask = torch.tensor(visible, device=hidden.device)
    added = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
    return added.masked_fill(~mask, torch.finfo(hidden.dtype).min)


def _is_default_mask(attention: Any, spec: Spec, visible: Numpy) -> bool:
    """Whether a module is expected to apply this mask if it is given none.

    Eager attention and modules of other libraries mask nothing then; transformers' other implementations are causal.
    """
    T, S = visible.shape[-2:]
    eager = (implementation_of(attention) or "eager") == "eager"
    if spec.causal == "none" or T == 1:
        return bool(visible.all())
    return not eager and T == S and bool((visible == np.tri(T, dtype=np.bool_)).all())


def _tensor(x: Numpy, device: Any) -> Any:
    """Copy an array, bfloat16 included, into a new tensor."""
    torch, x = importlib.import_module("torch"), np.array(x, order="C")
    if x.dtype.name == "bfloat16":
        return torch.tensor(x.view(np.int16), device=device).view(torch.bfloat16)
    return torch.tensor(x, device=device)
