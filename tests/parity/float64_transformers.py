"""transformers' DiffLlama with its float32 casts taken out: the truth for float64.

transformers casts RMSNorm, softmax, λ, RoPE and the losses to float32 even in a float64 model, so that model is good to
about 1e-7 only. This file takes the source of the installed modules, rewrites every mention of float32 to float64, and
executes the result as new modules beside the untouched ones. Nothing of transformers is stored here. The number of
rewritten places is written down: a release that adds or removes a cast must be looked at before it is believed.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from transformers.initialization import no_init_weights

SUFFIX = "_in_float64"
CASTS = re.compile(r"torch\.float32\b|torch\.float\b|\.float\(\)")
REWRITTEN = {"torch.float32": "torch.float64", "torch.float": "torch.float64", ".float()": ".double()"}
LEFT_OVER = re.compile(r"float32|float16|\.float\(|torch\.float\b|\.half\(|torch\.half\b")
# places rewritten in transformers 5.24, in the order in which the modules need each other
EXPECTED = {
    "transformers.modeling_rope_utils": 11,
    "transformers.loss.loss_utils": 3,
    "transformers.modeling_layers": 2,
    "transformers.models.diffllama.modeling_diffllama": 7,
    "transformers.models.llama.modeling_llama": 5,
}


class UnknownReleaseError(RuntimeError):
    """The installed transformers is not the one whose casts were looked at."""


def rewrite(source: str, name: str) -> str:
    """The source with float64 for float32, in imports too: what it imports from a rewritten module is rewritten."""
    found = len(CASTS.findall(source))
    if found != EXPECTED[name]:
        raise UnknownReleaseError(
            f"{name} of transformers {transformers.__version__} has {found} casts to float32, not {EXPECTED[name]}: "
            "read them, then correct EXPECTED in tests/parity/float64_transformers.py"
        )
    source = CASTS.sub(lambda match: REWRITTEN[match.group()], source)
    if left := LEFT_OVER.search(source):
        raise UnknownReleaseError(f"{name} still mentions {left.group()!r} after the casts were rewritten")
    for module in EXPECTED:
        tail = module.rpartition(".")[2]
        source = re.sub(rf"^from (\.+){tail} import", rf"from \g<1>{tail}{SUFFIX} import", source, flags=re.MULTILINE)
    return source


def load(name: str) -> ModuleType:
    """Execute the rewritten module under its own name, in the package where its relative imports mean the same."""
    new_name = name + SUFFIX
    if new_name in sys.modules:
        return sys.modules[new_name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UnknownReleaseError(f"transformers {transformers.__version__} has no module {name}")
    module = ModuleType(new_name)
    module.__file__ = spec.origin
    module.__package__ = name.rpartition(".")[0]
    sys.modules[new_name] = module
    try:
        source = rewrite(Path(spec.origin).read_text(encoding="utf-8"), name)
        exec(compile(source, f"{spec.origin}, rewritten", "exec"), module.__dict__)
    except BaseException:
        del sys.modules[new_name]
        raise
    return module


@contextmanager
def float64_by_default() -> Iterator[None]:
    """Inside, torch makes float64 of Python floats and of divided integers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def float64_class(architecture: str) -> type[torch.nn.Module]:
    """A DiffLlama class or LlamaForCausalLM, double throughout; the heads build the double DiffLlamaModel."""
    modules = {name: load(name) for name in EXPECTED}
    diffllama = modules["transformers.models.diffllama.modeling_diffllama"]
    modules["transformers.modeling_layers"].AutoModel = SimpleNamespace(from_config=diffllama.DiffLlamaModel)
    llama = modules["transformers.models.llama.modeling_llama"]
    return getattr(llama if architecture == "LlamaForCausalLM" else diffllama, architecture)


class SqrtSoftplus(torch.nn.Module):
    """√softplus without the shortcut of torch, which above 20 returns x itself: off by 10⁻¹⁰ of it, too much here."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(x, threshold=40).sqrt()


def build(architecture: str, config: Any, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The double class with these weights.

    Built without transformers' initialization: that would fill the inverse frequencies from the untouched functions.
    """
    with float64_by_default(), no_init_weights():
        model = float64_class(architecture)(config)
    model.load_state_dict(weights)
    if config.tie_word_embeddings and architecture.endswith("ForCausalLM"):
        model.lm_head.weight = model.model.embed_tokens.weight
    for module in model.modules():
        if isinstance(getattr(module, "act_fn", None), transformers.activations.SqrtSoftplusActivation):
            module.act_fn = SqrtSoftplus()
    if model.loss_type is not None:
        model.loss_function = load("transformers.loss.loss_utils").LOSS_MAPPING[model.loss_type]
    return model.eval()


def to_torch(value: Any) -> Any:
    """NumPy to torch: floats to float64, integers to int64, everything else as it is."""
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(np.array(value))
        return tensor.double() if tensor.is_floating_point() else tensor
    return value


def to_numpy(value: Any) -> Any:
    """torch to NumPy, through tuples; a cache and everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.float64 if value.is_floating_point() else value.dtype).numpy()
    if isinstance(value, tuple):
        return tuple(to_numpy(item) for item in value)
    return value


class Peer:
    """A torch model called with NumPy arrays and answering with NumPy arrays, dtype float64."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __call__(self, input_ids: np.ndarray | None = None, **options: Any) -> SimpleNamespace:
        dtype = next(self.model.parameters()).dtype
        arguments = {name: to_torch(value) for name, value in options.items() if value is not None}
        arguments = {
            name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in arguments.items()
        }
        if input_ids is not None:
            arguments["input_ids"] = to_torch(input_ids)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.no_grad():
                output = self.model(**arguments)
        finally:
            torch.set_default_dtype(before)
        return SimpleNamespace(**{name: to_numpy(value) for name, value in output.items()})


def float64_peer(folder: Path, architecture: str, *, attention: str = "eager") -> Peer:
    """The checkpoint as transformers itself loads it, its weights then moved into the double class."""
    loaded = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float64)
    loaded.config._attn_implementation = attention
    return Peer(build(architecture, loaded.config, loaded.state_dict()))


def float32_peer(folder: Path, architecture: str) -> Peer:
    """transformers untouched, in float32."""
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return Peer(model.eval())
