"""The kernel of the guide for Triton, in Triton's interpreter: it passes, and what is planted in it has a name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from refdiff import oracle
from refdiff.oracle import Case
from tests.oracle.test_guides import blocks

SPEC: dict[str, Any] = {"query_heads": 8, "key_heads": 4, "head_dim": 16, "layer": 3, "rope": "none", "lse_base": "2"}

FORWARD = {
    "exp2_for_exp": ("math.log2(math.e) / math.sqrt(d)", "1 / math.sqrt(d)"),
    "scores_scaled_by_sqrt_2d": ("math.log2(math.e) / math.sqrt(d)", "math.log2(math.e) / math.sqrt(2 * d)"),
    "causal_mask_top_left": ("<= rows[:, None] + S - T)", "<= rows[:, None])"),
    "own_key_masked": ("<= rows[:, None]", "< rows[:, None]"),
    "first_key_for_both_maps": ("(H // N) + head // N,", "(H // N) + head % (H // 2) // N,"),
    "keys_tiled": (
        "+ head // N, batch * (H // N // 2) + head % (H // 2) // N",
        "+ head // (H // 2) * (H // N // 2) + head % (H // N // 2), batch * (H // N // 2) + head % (H // N // 2)",
    ),
    "denominator_not_rescaled_by_tiles_of_32": ("total * old", "total"),
    "accumulator_not_rescaled_by_tiles_of_32": ("weighted * old[:, None]", "weighted"),
    "value_halves_swapped": ("torch.cat(v.chunk(2, dim=1)", "torch.cat(v.chunk(2, dim=1)[::-1]"),
    "lambda_added": ("first - lambda_ * second", "first + lambda_ * second"),
    "no_output_scale": ("((1 - lambda_init) * normed)", "normed"),
}
BACKWARD = {
    "factor of dq, dk = 4": ("1 / math.sqrt(d))", "1.0)"),
    "factor of dq = 1.443": ("store(DQ, dq * unit", "store(DQ, dq * scale"),
    "no_row_sums": (" - delta[:, None])", ")"),
    "gradient_of_one_query_head": ("range(of_k * N, of_k", "range(of_k * N + N - 1, of_k"),
    "value_gradient_of_first_map_only": ("dv += tl", "dv += (1 - i) * tl"),
}
"""By the name that `diagnose` gives: what is in the guide, and what an author could write in its place."""


def written(folder: Path, code: str) -> ModuleType:
    """A module of this code: Triton reads the source of a kernel from its file."""
    path = folder / "attention.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("attention", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel_of_the_guide() -> str:
    """All its code up to where it is called."""
    code = "\n\n".join(blocks("triton", "python"))
    return code[: code.index("\nsizes = ")]


def sized(dtype: str = "float32") -> Case:
    """More keys than queries, in two tiles each of which the second is not full."""
    spec = oracle.Spec.preset("hf_diffllama", **SPEC)
    return oracle.cases("discriminating", seed=1, spec=spec, dtype=dtype, batch=1, queries=37, keys=43)[0]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return written(tmp_path_factory.mktemp("guide"), kernel_of_the_guide())


def test_every_block_of_the_guide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = written(tmp_path, "\n\n".join(blocks("triton", "python")))
    assert module.spec == oracle.Spec.preset("hf_diffllama", **SPEC)
    assert capsys.readouterr().out == "pass\nkeys_swapped\n"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_output_log_sum_exps_and_gradients(right: ModuleType, dtype: str) -> None:
    case = sized(dtype)
    verdict = oracle.check(right.kernel, case.spec, case.inputs, recipe=dtype, dout=case.dout)
    assert verdict.status == "pass", str(verdict)
    assert {"out", "lse1", "lse2", "dq", "dk", "dv", "dlambda_k2"} <= verdict.tensors.keys()


def test_extreme_inputs_and_queries_that_see_nothing(right: ModuleType) -> None:
    found = oracle.cases("extreme", seed=1, spec=right.spec, dtype="float16", batch=1)
    found += oracle.cases("discriminating", seed=1, spec=right.spec, dtype="float16", batch=1, queries=7, keys=4)[:1]
    for case in found:
        verdict = oracle.check(right.kernel, case.spec, case.inputs, recipe="float16", dout=case.dout)
        assert verdict.status == "pass", f"{case}: {verdict}"


@pytest.mark.parametrize("name", [*FORWARD, *BACKWARD])
def test_a_planted_mistake_has_its_name(name: str, tmp_path: Path) -> None:
    old, new = (FORWARD | BACKWARD)[name]
    code = kernel_of_the_guide()
    assert old in code
    case, wrong = sized(), written(tmp_path, code.replace(old, new))
    if name in FORWARD:
        given, dout = {"out": wrong.kernel(case.inputs)["out"]}, None
    else:
        given, dout = wrong.kernel(case.inputs, case.dout), case.dout
    found = oracle.diagnose(given, case.spec, case.inputs, recipe="float32", dout=dout)
    assert found.name == name, str(found)
