"""Torch in one line: an attention module as a kernel that the oracle can call, and a whole model layer by layer.

    oracle.check(oracle.torch.module(attention, spec), spec, case.inputs, recipe="bfloat16", dout=case.dout)
    print(oracle.torch.model(model, ids, attn_implementation="sdpa"))

torch is imported when one of the two is called; neither changes the module or the model that it is given.
"""

from __future__ import annotations

import copy
import importlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.model import heads
from refdiff.oracle.diagnosis import Ranking, diagnose
from refdiff.oracle.divergence import Divergence, first_divergence
from refdiff.oracle.inputs import VECTORS, is_layer, kind_of, shapes
from refdiff.oracle.inputs.any_array import any_array, is_float
from refdiff.oracle.inputs.outputs import parameter_names
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.trace import hooks, trace
from refdiff.oracle.truth.attention_mask import attention_mask
from refdiff.oracle.truth.attention_operands import frequencies

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
"""Submodules by their job, and what transformers, unilm, timm and others call them."""
TENSORS = {
    **{name: name for name in VECTORS},
    "lambda_full": "lambda_full",
    "sinks": "sinks",
    "norm_weight": "norm.weight",
    "norm_bias": "norm.bias",
    "q_norm_weight": "q_norm.weight",
    "k_norm_weight": "k_norm.weight",
}
"""The parameter or buffer that each other input stands for: the module's own, or that of the submodule with a job."""
OF_QUERIES = {"lambda_logits": "lambda_proj", "gate_logits": "gate_proj"}
"""Inputs that are the output of a projection of the query-side hidden states."""
NOT_SERVED = ("bias", "mask", "q_positions", "k_positions", "cu_seqlens_q")
_INSIDE = re.compile(r"(?P<path>.*\blayers\.(?P<layer>\d+)\.self_attn)\.(?P<point>\w+)")
_BEFORE = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Points of an attention that are no part of what `diagnose` looks at: it starts from the projections."""


def module(attention: Any, spec: Spec | str, *, names: Mapping[str, str] | None = None) -> Callable[..., Any]:
    """Return an attention module of torch as `kernel(inputs, dout=None)`, which the oracle judges like any other.

    Functions replace the projections, and give q, k, v and the logits of λ and of the gate as the inputs have them. The
    inputs' λ vectors, sinks and weights of norms replace the module's parameters or buffers. Where there are more keys
    than queries, the first keys go through the module's cache. Gradients are autograd's; one of an input that the
    module does not use is 0. Inputs that a module cannot take, such as pages, are declined.

    Args:
        attention: a module whose forward takes hidden states first: transformers', timm's, unilm's or your own.
        spec: what it is meant to compute; or a preset's name, whose dimensions are then those of each call's inputs.
        names: what your module calls q_proj, k_proj, v_proj or qkv, o_proj, lambda_proj, gate_proj, norm, q_norm,
            k_norm, lambda_q1, …, lambda_full, sinks, norm_weight, norm_bias, q_norm_weight or k_norm_weight, where that
            is another name than in `NAMES` and `TENSORS`. A dotted name is inside a submodule: "inner.sink_logits".

    Raises:
        ValueError: it lacks a submodule or parameter that the spec has an input for, or `names` has an unknown name.
    """
    given = dict(names or {})
    if unknown := [name for name in given if name not in (*NAMES, *TENSORS)]:
        raise ValueError(f"names has {', '.join(unknown)}, but may have {', '.join((*NAMES, *TENSORS))}")
    paths = {job: given.get(job) or _first(attention, of) for job, of in NAMES.items()}
    if not paths["qkv"] and not all(paths[f"{x}_proj"] for x in "qkv"):
        has = ", ".join(name for name, _ in attention.named_children()) or "no submodule"
        raise ValueError(f"the module has {has}, expected q_proj, k_proj and v_proj, or qkv; name yours with names=")
    paths |= {name: given.get(name) or _path(paths, place) for name, place in TENSORS.items()}
    of_core = [name for name in shapes(resolve_spec(spec), {}) if name not in ("q", "k", "v")]
    for name in (*(["qkv"] if paths["qkv"] else ["q_proj", "k_proj", "v_proj"]), *of_core):
        _check_place(attention, paths, name)
    device = next((x.device for x in attention.parameters()), "cpu")

    def kernel(inputs: Mapping[str, Any], dout: Any = None) -> Any:
        arrays = {name: any_array(x, name) for name, x in inputs.items()}
        of = resolve_spec(spec, arrays)
        if not _is_served(attention, of, arrays):
            return NotImplemented
        tensors = {name: _tensor(x, device) for name, x in arrays.items()}
        leaves = {n: x.requires_grad_(dout is not None) for n, x in tensors.items() if is_float(arrays[n].dtype)}
        out = _called(attention, paths, of, arrays, tensors)
        if dout is None:
            return out.detach()
        torch = importlib.import_module("torch")
        dout = _tensor(any_array(dout, "dout"), device).to(out.dtype)
        pulled = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves.values(), pulled, strict=True)]
        return {"out": out.detach(), **{f"d{name}": g for name, g in zip(leaves, grads, strict=True)}}

    return kernel


def _path(paths: Mapping[str, str | None], place: str) -> str | None:
    """Where a tensor of `TENSORS` is, the submodules being at `paths`; None where the module lacks its submodule."""
    job, _, name = place.rpartition(".")
    owner = paths[job] if job else ""
    return None if owner is None else f"{owner}.{name}".removeprefix(".")


def _check_place(attention: Any, paths: Mapping[str, str | None], name: str) -> None:
    """Raise ValueError where a module has no place for an input."""
    job = OF_QUERIES.get(name, name)
    path = paths[job]
    if path is not None and _part(attention, path) is not None:
        return
    if path is not None:
        raise ValueError(f"the module has no {path}, for {name}; say with names={{{job!r}: ...}} what it calls it")
    lacking = job if job in NAMES else TENSORS[job].partition(".")[0]
    raise ValueError(
        f"the spec has {name}, and the module no {' or '.join(NAMES[lacking])}; say with names={{{lacking!r}: ...}} "
        "what it calls it"
    )


def _part(attention: Any, path: str) -> Any:
    """The submodule, parameter or buffer at a path; None where there is none."""
    *owners, name = path.split(".")
    for owner in owners:
        attention = attention._modules.get(owner)
        if attention is None:
            return None
    return next((x for x in (table.get(name) for table in _tables(attention)) if x is not None), None)


def _tables(attention: Any) -> tuple[dict[str, Any], ...]:
    return attention._modules, attention._parameters, attention._buffers


def _first(attention: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in attention._modules), None)


def _is_served(attention: Any, spec: Spec, arrays: Mapping[str, Numpy]) -> bool:
    """Whether a module can be called with such inputs: dense ones, whose queries are the last of the keys."""
    unmasked = "key_mask" in arrays and not _mask_name(attention)
    if kind_of(arrays) not in ("dense", "layer") or unmasked or any(name in arrays for name in NOT_SERVED):
        return False
    if is_layer(arrays):
        B, T = arrays["x"].shape[:2]
        S = T + arrays.get("x_past", arrays["x"][:, :0]).shape[1]
    else:
        heads = [arrays[name].shape[1:4:2] for name in "qk"]
        if heads != [(spec.query_heads, spec.head_dim), (spec.key_heads, spec.head_dim)]:
            return False
        B, T, S = arrays["q"].shape[0], arrays["q"].shape[2], arrays["k"].shape[2]
    if 0 in (B, T, S) or S < T or (S > T and not _cache_name(attention)):
        return False
    return bool(attention_mask(spec, _sizes(arrays, T, S)).any(axis=-1).all())


def _sizes(arrays: Mapping[str, Numpy], T: int, S: int) -> dict[str, Numpy]:
    """Inputs whose mask is that of `arrays`, which may be those of a layer."""
    masks = {name: arrays[name] for name in ("key_mask",) if name in arrays}
    return {"q": np.empty((1, 1, T, 0)), "k": np.empty((1, 1, S, 0)), **masks}


def _cache_name(attention: Any) -> str | None:
    names = parameter_names(attention.forward)
    return next((name for name in ("cache", "past_key_values") if name in names), None)


def _called(
    attention: Any, paths: Mapping[str, str | None], spec: Spec, arrays: Mapping[str, Numpy], x: Mapping[str, Any]
) -> Any:
    """Run a copy of the module, which shares all but what the inputs replace; the output, laid out as a kernel's."""
    torch = importlib.import_module("torch")
    layer = is_layer(arrays)
    T = x["x"].shape[1] if layer else x["q"].shape[2]
    past = x["x_past"].shape[1] if "x_past" in x else 0 if layer else x["k"].shape[2] - T
    parts = [slice(0, past), slice(past, past + T)] if past else [slice(0, T)]
    cache = importlib.import_module("transformers").DynamicCache() if past else None
    given = {} if layer else _projected(x)
    for n, part in enumerate(parts):
        last = n == len(parts) - 1
        if layer:
            hidden = x["x"] if last else x["x_past"]
            names = [name.removesuffix(".weight") for name in x if name.endswith("_proj.weight")]
            projections = {name: _linear(x, name) for name in names}
        else:  # of earlier tokens the keys and values alone matter: their queries are any
            now = {name: y[:, part] if name in ("k_proj", "v_proj") else y if last else y[:, :1].expand(-1, past, -1)
                   for name, y in given.items()}  # fmt: skip
            hidden = torch.zeros_like(now["q_proj"])
            projections = {name: _constant(y) for name, y in now.items()}
            if paths["o_proj"]:
                projections["o_proj"] = lambda y: y
        mask = attention_mask(spec, _sizes(arrays, T, past + T)) if last else None
        out = _with(attention, paths, projections, x)(hidden, **_arguments(attention, spec, hidden, part, mask, cache))
        out = out[0] if isinstance(out, tuple) else out
    return out if layer else out.reshape(*out.shape[:2], spec.heads, spec.out_dim).transpose(1, 2)


def _projected(x: Mapping[str, Any]) -> dict[str, Any]:
    """What each projection gives for core inputs: (B, T or S, width)."""
    heads = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": "gate_logits"}
    given = {job: x[name].transpose(1, 2).flatten(2) for job, name in heads.items() if name in x}
    return given | ({"lambda_proj": x["lambda_logits"]} if "lambda_logits" in x else {})


def _linear(x: Mapping[str, Any], name: str) -> Callable[[Any], Any]:
    torch = importlib.import_module("torch")
    return lambda y: torch.nn.functional.linear(y, x[f"{name}.weight"], x.get(f"{name}.bias"))


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _with(
    attention: Any, paths: Mapping[str, str | None], projections: Mapping[str, Callable[[Any], Any]],
    x: Mapping[str, Any],
) -> Any:  # fmt: skip
    """A copy of the module with functions for projections, and the inputs for its parameters and buffers."""
    torch = importlib.import_module("torch")

    class Function(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, function: Callable[[Any], Any]) -> None:
            super().__init__()
            self.function = function

        def forward(self, y: Any) -> Any:
            return self.function(y)

    clone = _copy(attention)
    functions = dict(projections)
    if paths["qkv"]:
        three = [functions.pop(f"{name}_proj") for name in "qkv"]
        functions["qkv"] = lambda y: torch.cat([f(y) for f in three], dim=-1)
    for job, function in functions.items():
        _check_place(attention, paths, job)
        _put(clone, str(paths[job]), Function(function), job)
    for name in TENSORS:
        if name in x:
            _put(clone, str(paths[name]), x[name], name)
    return clone


def _put(clone: Any, path: str, value: Any, name: str) -> None:
    """Put a module or a tensor in its place in a copy, and copies in that of the submodules on the path."""
    *owners, last = path.split(".")
    for owner in owners:
        clone._modules[owner] = _copy(clone._modules[owner])
        clone = clone._modules[owner]
    table = next(table for table in _tables(clone) if table.get(last) is not None)
    if table is not clone._modules:
        if table[last].numel() != value.numel():
            has, given = tuple(table[last].shape), tuple(value.shape)
            raise ValueError(f"{name} has shape {given}, and the module's {path} {has}: they must be as many numbers")
        value = value.reshape(table[last].shape)
    table[last] = value


def _copy(part: Any) -> Any:
    """A module with the same submodules, parameters and buffers, of which others may be put in their place."""
    clone = copy.copy(part)
    clone.__dict__.update({name: dict(getattr(part, name)) for name in ("_modules", "_parameters", "_buffers")})
    return clone


def _arguments(attention: Any, spec: Spec, hidden: Any, part: slice, mask: Numpy | None, cache: Any) -> dict[str, Any]:
    """What a forward takes beside hidden states, by the names that it has for it."""
    torch = importlib.import_module("torch")
    names = parameter_names(attention.forward)
    found: dict[str, Any] = {}
    positions = torch.arange(part.start, part.stop, device=hidden.device)[None]
    fast, factor = frequencies(spec, ops_for())
    turn = torch.tensor(fast, dtype=torch.float32, device=hidden.device)
    if "position_embeddings" in names:
        angles = torch.cat([positions[..., None] * turn] * 2, dim=-1)
        found["position_embeddings"] = tuple((factor * f(angles)).to(hidden.dtype) for f in (torch.cos, torch.sin))
    if "position_ids" in names:
        found["position_ids"] = positions
    if cache is not None:
        found[str(_cache_name(attention))] = cache
    if "rel_pos" in names:  # unilm's
        angles = positions[0, :, None] * turn
        found["rel_pos"] = tuple((factor * f(angles)).to(hidden.dtype) for f in (torch.cos, torch.sin))
    seen = np.tri(hidden.shape[1], dtype=np.bool_)[None, None] if mask is None else mask
    if mask_name := _mask_name(attention):
        found[mask_name] = None if _is_own_mask(attention, spec, seen) else _added(seen, hidden)
    return found


def _added(seen: Numpy, hidden: Any) -> Any:
    """A mask as it is added to scores: 0 where a query sees, else the smallest number of the type."""
    torch = importlib.import_module("torch")
    see = torch.tensor(np.broadcast_to(seen, (hidden.shape[0], 1, *seen.shape[-2:])), device=hidden.device)
    added = torch.zeros(see.shape, dtype=hidden.dtype, device=hidden.device)
    return added.masked_fill(~see, torch.finfo(hidden.dtype).min)


def _mask_name(attention: Any) -> str | None:
    names = parameter_names(attention.forward)
    return next((name for name in ("attention_mask", "attn_mask") if name in names), None)


def _is_own_mask(attention: Any, spec: Spec, seen: Numpy) -> bool:
    """Whether a module masks so by itself: all but transformers' eager attention are causal without a mask."""
    T, S = seen.shape[-2:]
    eager = getattr(getattr(attention, "config", None), "_attn_implementation", "eager") == "eager"
    if spec.causal == "none" or T == 1:
        return bool(seen.all())
    return not eager and T == S and bool((seen == np.tri(T, dtype=np.bool_)).all())


def _tensor(x: Numpy, device: Any) -> Any:
    """A tensor of its own with the numbers of an array, bfloat16 too."""
    torch, x = importlib.import_module("torch"), np.array(x, order="C")
    if x.dtype.name == "bfloat16":
        return torch.tensor(x.view(np.int16), device=device).view(torch.bfloat16)
    return torch.tensor(x, device=device)


@dataclass(frozen=True)
class ModelReport:
    """Whether a model computes what it should: true where nothing diverges.

    divergence: of all points, with the first that is wrong. layer: where that is, or None. diagnosis: what the mistake
    is called, of a point between the projections of an attention.
    """

    divergence: Divergence
    layer: int | None = None
    diagnosis: Ranking | None = None

    def __bool__(self) -> bool:
        return not self.divergence

    def __str__(self) -> str:
        if self:
            return f"pass\n{self.divergence}"
        where = "" if self.layer is None else f"layer {self.layer}, "
        name = "" if self.diagnosis is None else f"diagnosis: {self.diagnosis}\n"
        return f"fail: {where}point {str(self.divergence.path).rpartition('.')[2]}\n{name}{self.divergence}"


def model(
    of: Any,
    prompt: Any,
    *,
    attn_implementation: str | None = None,
    attention_mask: Any = None,
    tokenizer: Any = None,
) -> ModelReport:
    """Run a DiffLlama of transformers and find the first layer and point that is not what its own inputs make it.

    The points are the outputs of all modules, and of each attention the rotated q and k and what each map gives, seen
    where the model calls its attention function. The reference has the model's weights, in float64.

    Args:
        of: the live model, on the CPU or a GPU.
        prompt: ids (T,) or (B, T), of any library; or a text, with `tokenizer`.
        attn_implementation: another one for this run, such as "sdpa" or what you have registered; None is the model's.
        attention_mask: (B, T), 0 for padding.

    Raises:
        ValueError: another model than DiffLlama, or a text without a tokenizer.
    """
    torch = importlib.import_module("torch")
    kind = next((k for c in type(of).__mro__ if (k := getattr(heads, c.__name__, None)) is not None), None)
    if kind is None or of.config.model_type != "diffllama":
        raise ValueError(f"the model is a {type(of).__name__}, expected a DiffLlama of transformers")
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("prompt: got a text, expected ids; give the tokenizer beside it")
        prompt = tokenizer(prompt)["input_ids"]
    ids = np.atleast_2d(any_array(prompt, "prompt"))
    call = {"input_ids": ids} | ({} if attention_mask is None else {"attention_mask": any_array(attention_mask)})
    with tempfile.TemporaryDirectory() as folder:
        of.save_pretrained(folder)
        ours = kind.from_pretrained(folder, mmap=False)
    with (
        _implementation(of, attn_implementation) as used,
        hooks(of) as points,
        _attention_points(of) as inside,
        torch.no_grad(),
    ):
        of(**{name: torch.tensor(x).to(of.device) for name, x in call.items()}, use_cache=False)
    mine = {**points, **inside}
    found = first_divergence(mine, trace(ours, call))
    at = _INSIDE.fullmatch(found.path or "")
    if at is None or at["point"] in _BEFORE:
        layer = re.search(r"\blayers\.(\d+)", found.path or "")
        return ModelReport(found, int(layer[1]) if layer else None)
    return ModelReport(found, int(at["layer"]), _named(of, mine, at, call, found.precision, eager=used == "eager"))


@contextmanager
def _implementation(of: Any, name: str | None) -> Iterator[str]:
    """Have a model run with another attention implementation for a while; the name of the one that it runs with."""
    before = of.config._attn_implementation
    if name is not None:
        of.set_attn_implementation(name)
    try:
        yield of.config._attn_implementation
    finally:
        if name is not None:
            of.set_attn_implementation(before)


@contextmanager
def _attention_points(of: Any) -> Iterator[dict[str, Numpy]]:
    """Record what a model's attention function is given and gives: it is called for each half of the values."""
    functions = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    get_interface = functions.get_interface
    paths = {id(part): name for name, part in of.named_modules()}
    points: dict[str, Numpy] = {}
    halves: dict[str, Any] = {}

    def seen(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(part: Any, q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
            out = function(part, q, k, *args, **kwargs)
            path = paths[id(part)]
            if path not in halves:
                halves[path] = out[0]
                points.update({f"{path}.q_rope": any_array(q).copy(), f"{path}.k_rope": any_array(k).copy()})
                return out
            both = importlib.import_module("torch").cat([halves.pop(path), out[0]], dim=-1).transpose(1, 2)
            for n, of_map in enumerate(both.chunk(2, dim=1), start=1):
                points[f"{path}.attn{n}"] = any_array(of_map).copy()
            return out

        return call

    functions.get_interface = lambda *args, **kwargs: seen(get_interface(*args, **kwargs))
    try:
        yield points
    finally:
        del functions.get_interface


def _named(
    of: Any, points: Mapping[str, Numpy], at: re.Match[str], call: Mapping[str, Numpy], precision: str, *, eager: bool
) -> Ranking | None:
    """What the mistake of one attention is called, from its projections to what o_proj is given."""
    path, config = at["path"], of.config
    part = of.get_submodule(path)
    H, K, d = config.num_attention_heads, config.num_key_value_heads, part.head_dim
    rope = dict(config.rope_parameters)
    plain = rope.get("rope_type", "default") == "default" and rope.get("partial_rotary_factor", 1) == 1
    if not plain and at["point"] in ("q_rope", "k_rope"):
        return None
    spec = Spec.preset(
        "hf_diffllama", query_heads=H, key_heads=K, head_dim=d, layer=int(at["layer"]), norm_eps=config.rms_norm_eps,
        rope="halves" if plain else "none", rope_theta=rope.get("rope_theta", 10_000.0), padded_queries="any",
    )  # fmt: skip

    def by_head(name: str, count: int) -> Numpy:
        x = points[f"{path}.{name}"]
        return np.ascontiguousarray(np.swapaxes(x.reshape(*x.shape[:2], count, -1), 1, 2))

    names = {"q": ("q_proj", H), "k": ("k_proj", K), "v": ("v_proj", K)}
    inputs = {name: by_head(*where) for name, where in names.items()}
    if not plain:
        inputs |= {name: points[f"{path}.{name}_rope"] for name in "qk"}
    inputs |= {name: any_array(getattr(part, name)).copy() for name in VECTORS}
    if "attention_mask" in call:
        inputs["key_mask"] = call["attention_mask"] != 0
    storage = "float32" if precision == "float64" else precision
    recipe = Recipe.of({"storage": storage, "qk": storage if eager else "float32"})
    return diagnose(by_head("scaled", spec.heads), spec, inputs, recipe=recipe)
