"""Correct kernels that are not of this project: each must pass, and shows how large the errors of real kernels are.

They come as a mapping, by name, of (preset, eager, function): whether every operation's result is stored, so that the
recipe is `Recipe.eager`, and function(spec, inputs, dout, dtype) -> out, dq, dk, dv and, where there are any, lse1 and
lse2, as float64 of the storage type's values; or nothing where the kernel does not serve that type.
`tests.parity.real_kernels:KERNELS` is one, of torch, transformers, timm, jax and MLX.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refdiff.oracle import Recipe
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from tests.oracle.selftest.mutants import way_of
from tests.oracle.selftest.one_case import Trial, judge_correct
from tests.oracle.selftest.settings import Setting
from tests.oracle.selftest.table import Table

Kernels = Mapping[str, tuple[str, bool, Callable[..., dict[str, Any]]]]
STRUCTURES = {
    "hf_diffllama": (Structure(1, 40, 40), Structure(2, 33, 33)),
    "ms_v1": (Structure(2, 24, 37), Structure(1, 36, 50)),
    "timm": (Structure(1, 40, 40), Structure(2, 33, 33)),
}
"""By preset; the modules of transformers and timm have as many keys as queries."""


def kernels_of(name: str) -> Kernels:
    """Import `package.module:NAME`, from the current folder too.

    Raises:
        ValueError: it is written in another way, or names no mapping.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"kernels: got {name!r}, expected package.module:NAME")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(f"kernels is {name!r}: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"kernels is {name!r}, but {module} has no mapping {attribute}")
    return found


def case_of_others(seed: int, dtype: str, profile: str, kernels: Kernels) -> Table:
    """Judge all kernels on one seed and profile in a storage type, each by the recipe that it has."""
    table = Table()
    trials: dict[tuple[str, bool], Trial] = {}
    for name, (preset, eager, function) in kernels.items():
        recipe = Recipe.eager(dtype) if eager else Recipe(dtype)
        setting = Setting(small_spec(preset), STRUCTURES[preset][seed % 2], "dense", (), main=True)
        trial = trials.setdefault((preset, eager), Trial(setting, seed, recipe, profile))
        found = function(setting.spec, trial.budget.inputs, trial.dout, dtype)
        judge_correct(table, (dtype, profile), f"{name}, seed {seed}", found, trial, real=True)
        for tensor, x in found.items():
            errors = table.errors[dtype, profile, way_of(tensor), name]
            errors.append(round(trial.noise[tensor][0].times(x, trial.right[tensor]), 3))
    return table
