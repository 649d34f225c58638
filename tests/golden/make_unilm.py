"""Write `unilm.safetensors` again: `python -m tests.golden.make_unilm UNILM` (needs the extra `parity`).

UNILM is a checkout of https://github.com/microsoft/unilm. Its files in `Diff-Transformer/` are run as they are, in
float64, on random weights; nothing of them is stored here but what they computed. What they import and a CPU lacks is
replaced by the functions below: `flash_attn` and `flex_head_fa` by attention written out, `kernel.rotary` (for a GPU)
by the rotation that it is documented to be. Their casts to float32 are taken out by making `Tensor.float` do nothing.

Names in the file are `case/in/x`, `case/weight/parameter` and `case/out/file`. Its metadata holds the seed, versions,
the commit, and the git blob of every file that was run, which `git rev-parse COMMIT:PATH` gives for any commit.

They came from two commits, of which the metadata names the first: it has the files of v1; `Diff-Transformer-V2` came
later. With both, all five blobs are those in the metadata, and the outputs the same up to rounding:

    git checkout 768a3c873f598bb9b4d4dfb9267b099e35f8fe56
    git checkout 31646c58ba06272ce1771bf07681751f0114abd0 -- Diff-Transformer/Diff-Transformer-V2
"""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.numpy import save_file

SEED = 20_261_124
FILE = Path(__file__).with_name("unilm.safetensors")
THETA = 10_000.0
B, T = 2, 7

V1 = {
    "multihead_flashdiff_1": "MultiheadFlashDiff1",
    "multihead_flashdiff_2": "MultiheadFlashDiff2",
    "multihead_diffattn": "MultiheadDiffAttn",
}
SIZES = {
    "mha": {"embed_dim": 48, "depth": 3, "num_heads": 4, "num_kv_heads": None},
    "gqa2": {"embed_dim": 48, "depth": 0, "num_heads": 4, "num_kv_heads": 2},
    "gqa3": {"embed_dim": 48, "depth": 5, "num_heads": 6, "num_kv_heads": 2},
}
V2 = {
    "mha": {"d_model": 26, "num_heads": 3, "num_kv_heads": None, "head_dim": 6},
    "gqa2": {"d_model": 26, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6},
    "gqa3": {"d_model": 26, "num_heads": 3, "num_kv_heads": 1, "head_dim": 6},
}


def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """Attention with heads on the third axis, as flash-attn defines it: queries of a group read one key head."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[3] ** 0.5
    if causal:
        later = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
        scores = scores.masked_fill(later, -torch.inf)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(dim=-1), v)


def apply_rotary_emb(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Turn (x₂ᵢ, x₂ᵢ₊₁) by angle i of each token; x is (B, T, heads, d), cos and sin are (T, d/2)."""
    if not interleaved:
        raise ValueError("unilm's files rotate interleaved pairs")
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.complex(cos, sin)[None, :, None, :]
    return torch.view_as_real(turned).flatten(-2)


@contextmanager
def unilm(folder: Path) -> Iterator[None]:
    """Inside, `import multihead_…` finds unilm's files, and these find our stand-ins; all is float64."""

    def module(name: str, **functions: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(functions)
        return made

    softmax = torch.nn.functional.softmax
    stand_ins = {
        "flash_attn": module("flash_attn", flash_attn_func=flash_attn_func),
        "flex_head_fa": module("flex_head_fa", flash_attn_func=flash_attn_func),
        "kernel": module("kernel"),
        "kernel.rotary": module("kernel.rotary", apply_rotary_emb=apply_rotary_emb),
    }
    path = [str(folder), str(folder / "Diff-Transformer-V2"), *sys.path]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.dict(sys.modules, stand_ins),
            mock.patch.object(sys, "path", path),
            mock.patch.object(torch, "compile", lambda function: function),
            mock.patch.object(torch.Tensor, "float", lambda self: self),
            mock.patch.object(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim)),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def run(modules: dict[str, torch.nn.Module], width: int, head_dim: int, seed: int) -> dict[str, np.ndarray]:
    """Give the modules the same random weights and inputs, large enough that every part matters; return what they are.

    The keys are `in/x`, `weight/parameter`, and `out/name` for each module.
    """
    g = np.random.default_rng(seed)
    first, *_ = modules.values()
    weights = {
        name: g.normal(1.0, 0.3, p.shape) if name == "subln.weight" else g.normal(0.0, 0.4, p.shape)
        for name, p in first.named_parameters()
    }
    x = g.normal(size=(B, T, width))
    angles = np.arange(T)[:, None] * THETA ** (-np.arange(0, head_dim, 2) / head_dim)
    rotation = (torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles)))
    arrays = {"in/x": x} | {f"weight/{name}": weight for name, weight in weights.items()}
    for name, module in modules.items():
        module.double().load_state_dict({key: torch.from_numpy(weight) for key, weight in weights.items()})
        with torch.no_grad():
            arrays[f"out/{name}"] = module(torch.from_numpy(x), rotation).numpy()
    return arrays


def blob(path: Path) -> str:
    """The id that git gives to the content of a file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def make(checkout: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of `unilm.safetensors`."""
    folder = checkout / "Diff-Transformer"
    v2_file = "multihead_flashdiffv2"
    arrays: dict[str, np.ndarray] = {}
    cases: dict[str, Any] = {}
    with unilm(folder):
        for size, v1 in SIZES.items():
            modules = {file: getattr(importlib.import_module(file), name)(**v1) for file, name in V1.items()}
            cases[f"v1-{size}"] = (v1, modules, v1["embed_dim"], v1["embed_dim"] // v1["num_heads"] // 2)
        for size, v2 in V2.items():
            for case, on in ((f"v2-{size}", True), (f"plain-{size}", False)):
                module = importlib.import_module(v2_file).MultiheadFlashDiffV2(use_diff_v2=on, **v2)
                cases[case] = (v2, {v2_file: module}, v2["d_model"], v2["head_dim"])
        for number, (case, (_, modules, width, head_dim)) in enumerate(cases.items()):
            made = run(modules, width, head_dim, SEED + number)
            arrays |= {f"{case}/{name}": array for name, array in made.items()}
    ran = ["rms_norm.py", *(f"{file}.py" for file in V1), f"Diff-Transformer-V2/{v2_file}.py"]
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    metadata = {
        "cases": {case: options for case, (options, *_) in cases.items()},
        "seed": SEED,
        "unilm": commit.stdout.strip(),
        "blobs": {file: blob(folder / file) for file in ran},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    return arrays, {"made_by": json.dumps(metadata)}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.golden.make_unilm UNILM, a checkout of https://github.com/microsoft/unilm")
    made, about = make(Path(sys.argv[1]))
    save_file(made, FILE, metadata=about)
    FILE.chmod(0o644)
