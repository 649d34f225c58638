"""Public implementations of differential attention, each judged by the oracle: packages, and checkouts of repositories.

    python -m tests.parity.public_implementations microsoft/unilm=PATH axolotl-ai-cloud/diff-transformer=PATH …

prints the table of notebooks/reference/guides/implementations.md: all packages of PyPI, and the repositories whose
checkouts are named. No code of theirs is here: what they cannot import on a CPU has a stand-in, which the table names.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import torch

from refdiff import oracle
from refdiff.oracle import Case, Recipe, Spec, cases
from tests.parity.real_kernels import Given, diffllama, timm_module

Kernel = Callable[..., Any]
EAGER = {"float32": Recipe("float32"), "bfloat16": Recipe.eager("bfloat16")}
FUSED = {"float32": Recipe("float32"), "bfloat16": Recipe("bfloat16")}
SMALL = ("natural", "discriminating", "cancellation", "extreme")
"""Profiles for what Triton's interpreter runs, which takes milliseconds for each operation of a tile."""


@dataclass(frozen=True)
class Implementation:
    """One attention: where it is from, what it is meant to compute, and a kernel of it, given a checkout or None.

    source: a package of PyPI, or owner/name on GitHub. recipes: by type, what it rounds there. profiles: of cases.
    backward: whether it has gradients. expected: "pass", or the name of its deviation from `spec`.
    """

    source: str
    name: str
    spec: Spec
    kernel: Callable[[Spec, Path], Kernel]
    recipes: dict[str, Recipe]
    backward: bool = True
    expected: str = "pass"
    profiles: tuple[str, ...] = ("natural", "discriminating", "modules", "cancellation", "extreme")

    @property
    def is_package(self) -> bool:
        return "/" not in self.source


@dataclass(frozen=True)
class Result:
    """What was found: cases of each type that passed, of how many; and of the first that failed, what it is called."""

    passed: dict[str, tuple[int, int]]
    name: str

    @property
    def verdict(self) -> str:
        return "pass" if all(n == of for n, of in self.passed.values()) else self.name


def judge(one: Implementation, checkout: Path = Path()) -> Result:
    """Judge one on all cases that it serves; inconclusive ones are not counted."""
    kernel = one.kernel(one.spec, checkout)
    passed, name = {}, ""
    for dtype, recipe in one.recipes.items():
        statuses = []
        for case in (case for p in one.profiles for case in cases(p, 1, spec=one.spec, dtype=dtype)):
            got = kernel(case.inputs, dout=case.dout) if one.backward else kernel(case.inputs)
            if got is NotImplemented:
                continue
            dout = case.dout if one.backward else None
            verdict = oracle.check(got, case.spec, case.inputs, recipe=recipe, dout=dout)
            statuses.append(verdict.status)
            if verdict.status == "fail" and not name:
                name = _name(got, case, recipe, dout)
        passed[dtype] = (statuses.count("pass"), len(statuses) - statuses.count("inconclusive"))
    return Result(passed, name)


def _name(got: Any, case: Case, recipe: Recipe, dout: Any) -> str:
    found = oracle.diagnose(got, case.spec, case.inputs, recipe=recipe, dout=dout)
    return found.name or found.status


# what the kernels are made of


@contextlib.contextmanager
def _importing(folder: Path, stand_ins: dict[str, ModuleType]) -> Iterator[None]:
    """Import from a folder, with modules in the place of some that need a GPU; afterwards all is as before."""
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in sys.modules.keys() - before.keys():
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)) or name in stand_ins:
                del sys.modules[name]


def _flash_attn(name: str) -> ModuleType:
    """`flash_attn_func` of (B, T, H, d) by torch's scaled_dot_product_attention."""

    def flash_attn_func(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return out.transpose(1, 2)

    module = ModuleType(name)
    vars(module)["flash_attn_func"] = flash_attn_func
    return module


def _unilm(file: str, name: str) -> Callable[[Spec, Path], Kernel]:
    def make(spec: Spec, checkout: Path) -> Kernel:
        folder = checkout / "Diff-Transformer"
        with (
            contextlib.redirect_stdout(None),
            _importing(folder, {n: _flash_attn(n) for n in ("flash_attn", "flex_head_fa")}),
        ):
            of = getattr(importlib.import_module(file), name)
        dims = (spec.query_heads * spec.head_dim, spec.layer, spec.query_heads // 2, spec.key_heads // 2)
        inner = oracle.torch.module(of(*dims), spec)

        def kernel(inputs: dict[str, Any], dout: Any = None) -> Any:
            with mock.patch.object(torch.cuda, "device", return_value=contextlib.nullcontext()):
                return inner(inputs, dout=dout)

        return kernel

    return make


def _axolotl(name: str) -> Callable[[Spec, Path], Kernel]:
    def make(spec: Spec, checkout: Path) -> Kernel:
        from transformers import LlamaConfig

        path = checkout / "src" / "axolotl_diff_transformer" / "modeling" / "diff_attn.py"
        found = importlib.util.spec_from_file_location("diff_attn", path)
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        config = LlamaConfig(
            hidden_size=spec.query_heads * spec.head_dim, num_attention_heads=spec.query_heads, head_dim=spec.head_dim,
            num_key_value_heads=spec.key_heads, rms_norm_eps=spec.norm_eps, attention_bias=False,
            attn_implementation="sdpa" if "Sdpa" in name else "eager",
        )  # fmt: skip
        config.split_heads = True
        return oracle.torch.module(getattr(module, name)(config, spec.layer).eval(), spec)

    return make


def _of(make: Callable[..., Any], *args: Any, **options: Any) -> Callable[[Spec, Path], Kernel]:
    return lambda spec, _: oracle.torch.module(make(spec, *args, **options), spec)


def _tensors(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    kind = getattr(torch, str(inputs["q"].dtype))
    return {name: torch.tensor(np.asarray(x, dtype=np.float32)).to(kind) for name, x in inputs.items()}


def _is_plain(inputs: dict[str, Any]) -> bool:
    """Whether every query sees a key, and nothing is hidden but the future."""
    names = {"q", "k", "v", "lambda_logits", "norm_weight"}
    return names == inputs.keys() and inputs["q"].shape[2] <= inputs["k"].shape[2]


def _coda(*, triton: bool) -> Callable[[Spec, Path], Kernel]:
    def make(spec: Spec, _: Path) -> Kernel:
        from coda_gqa_l.triton_diff_flash import diff_flash_attn
        from coda_gqa_l.triton_diff_flash.kernel import _diff_flash_fwd

        def kernel(inputs: dict[str, Any]) -> Any:
            if not _is_plain(inputs):
                return NotImplemented
            x = _tensors(inputs)
            lambda_ = torch.sigmoid(x["lambda_logits"].float()).to(x["q"].dtype).transpose(1, 2)[..., None]
            given = [y.contiguous() for y in (x["q"][:, 0::2], x["q"][:, 1::2], x["k"], x["v"], lambda_)]
            more = {"rms_weight": x["norm_weight"], "eps": spec.norm_eps, "is_causal": True}
            if not triton:
                return diff_flash_attn(*given, **more)
            out = torch.empty_like(given[0])
            given[4] = given[4].squeeze(-1)
            _diff_flash_fwd(*given, out, sm_scale=spec.head_dim**-0.5, APPLY_RMS=True, **more)
            return out

        return kernel

    return make


def _nanowell(spec: Spec, checkout: Path) -> Kernel:
    """Its λ vectors are one for each head, and get those of the inputs in all; its norm's weight stays 1."""
    found = importlib.util.spec_from_file_location("DiffTransformer", checkout / "DiffTransformer.py")
    code = importlib.util.module_from_spec(found)
    found.loader.exec_module(code)

    def kernel(inputs: dict[str, Any], dout: Any = None) -> Any:
        vectors = {f"lambda_{side}{n}" for side in "qk" for n in (1, 2)}
        if {"q", "k", "v", *vectors} != inputs.keys() or inputs["q"].shape[2] != inputs["k"].shape[2]:
            return NotImplemented
        x = {name: y.requires_grad_() for name, y in _tensors(inputs).items()}
        h, start = spec.heads, 0.8 - 0.6 * math.exp(-0.3 * spec.layer)
        module = code.MultiHeadDifferentialAttention(h * spec.head_dim, h, start).to(x["q"].dtype)
        for name in "qkv":
            setattr(module, f"W_{name}", Given(x[name].transpose(1, 2).flatten(2)))
        module.W_o = torch.nn.Identity()
        for name in vectors:
            delattr(module, name)
            setattr(module, name, x[name].expand(h, -1))
        out = module(torch.zeros(*x["q"].shape[:1], x["q"].shape[2], h * spec.head_dim, dtype=x["q"].dtype))
        out = out.unflatten(2, (h, spec.out_dim)).transpose(1, 2)
        out.backward(_tensors({"q": dout})["q"])
        return {"out": out.detach(), **{f"d{name}": y.grad for name, y in x.items()}}

    return kernel


_GROUPED: dict[str, Any] = {"query_heads": 8, "key_heads": 4, "head_dim": 8, "layer": 2}
_ALIKE: dict[str, Any] = {"query_heads": 8, "key_heads": 8, "head_dim": 8, "layer": 2}
_HF, _MS = Spec.preset("hf_diffllama", **_GROUPED), Spec.preset("ms_v1", **_GROUPED)
_CODA = Spec(
    query_heads=8, key_heads=2, head_dim=16, pairing="interleaved", keys="shared", values="single", rope="none",
    lambda_form="sigmoid", norm_weight=True, norm_eps=1e-6, out_scale="none",
)  # fmt: skip

IMPLEMENTATIONS = (
    Implementation("transformers", "DiffLlamaAttention, eager", _HF, _of(diffllama, "eager"), EAGER),
    Implementation("transformers", "DiffLlamaAttention, sdpa", _HF, _of(diffllama, "sdpa"), FUSED),
    Implementation("timm", "DiffAttention", Spec.preset("timm", **_ALIKE), _of(timm_module, fused=False), EAGER),
    Implementation("timm", "DiffAttention, fused", Spec.preset("timm", **_ALIKE), _of(timm_module, fused=True), FUSED),
    Implementation(
        "coda-gqa-l", "diff_flash_attn, Triton", _CODA, _coda(triton=True),
        {"float32": Recipe("float32"), "float16": Recipe("float16")}, backward=False, profiles=SMALL,
    ),
    Implementation(
        "coda-gqa-l", "diff_flash_attn, CPU", _CODA, _coda(triton=False), {"float32": Recipe("float32")},
        backward=False, expected="causal_mask_top_left",
    ),
    Implementation(
        "microsoft/unilm", "MultiheadDiffAttn", Spec.preset("ms_v1_naive", **_GROUPED),
        _unilm("multihead_diffattn", "MultiheadDiffAttn"), {"float32": Recipe("float32")}, profiles=SMALL,
    ),
    Implementation(
        "microsoft/unilm", "MultiheadFlashDiff1", _MS, _unilm("multihead_flashdiff_1", "MultiheadFlashDiff1"),
        {"float32": Recipe("float32")}, profiles=SMALL,
    ),
    Implementation(
        "microsoft/unilm", "MultiheadFlashDiff2", _MS, _unilm("multihead_flashdiff_2", "MultiheadFlashDiff2"),
        {"float32": Recipe("float32")}, profiles=SMALL,
    ),
    Implementation(
        "axolotl-ai-cloud/diff-transformer", "LlamaDifferentialAttention", _HF.replace(norm_weight=True),
        _axolotl("LlamaDifferentialAttention"), EAGER, expected="no_output_scale",
    ),
    Implementation(
        "axolotl-ai-cloud/diff-transformer", "LlamaDifferentialSdpaAttention", _HF.replace(norm_weight=True),
        _axolotl("LlamaDifferentialSdpaAttention"), FUSED, expected="no_output_scale",
    ),
    Implementation(
        "nanowell/Differential-Transformer-PyTorch", "MultiHeadDifferentialAttention",
        Spec.preset("ms_v1", rope="none", norm_weight=False, **_ALIKE), _nanowell, {"float32": Recipe("float32")},
    ),
)  # fmt: skip


def version(one: Implementation, checkout: Path) -> str:
    """Of a package; or the commit of a checkout, of which the first twelve digits."""
    if one.is_package:
        return importlib.metadata.version(one.source)
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout[:12]


def row(one: Implementation, found: Result, at: str) -> str:
    """A line of the table."""
    source = one.source if one.is_package else f"[{one.source}](https://github.com/{one.source})"
    types = ", ".join(f"{dtype} {n} of {of}" for dtype, (n, of) in found.passed.items())
    direction = "outputs, gradients" if one.backward else "outputs"
    verdict = found.verdict if found.verdict == "pass" else f"`{found.verdict}`"
    return f"| {source} | {at} | `{one.name}` | {direction} | {types} | {verdict} |"


HEAD = "| from | version or commit | what | checked | cases that pass | verdict |\n|---|---|---|---|---|---|"


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    checkouts = {source: Path(path) for source, _, path in (text.partition("=") for text in arguments)}
    print(HEAD)
    for one in IMPLEMENTATIONS:
        if one.is_package or one.source in checkouts:
            checkout = checkouts.get(one.source, Path())
            print(row(one, judge(one, checkout), version(one, checkout)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
