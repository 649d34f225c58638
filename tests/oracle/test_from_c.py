"""Kernels of shared libraries, in C and in Rust: right ones pass, and the mistake planted in each is named."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle.from_c import DTYPES, HEADER

HERE = Path(__file__).parent / "c_kernels"
SPEC = oracle.Spec.preset("attention", query_heads=4, key_heads=2, head_dim=8)
BUILD = {
    "c": (
        "cc",
        ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{HEADER.parent}"],
        ["-lm"],
    ),
    "rs": ("rustc", ["--edition", "2021", "-O", "--crate-type", "cdylib"], []),
}
MISTAKES = {"c": ["-DMISTAKE"], "rs": ["--cfg", "mistake"]}


def build(language: str, out: Path, *flags: str, source: Path | None = None) -> Path:
    compiler, options, last = BUILD[language]
    if shutil.which(compiler) is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI has no {compiler}")
        pytest.skip(f"no {compiler} here")
    subprocess.run([compiler, *options, *flags, source or HERE / f"attend.{language}", "-o", out, *last], check=True)
    return out


@pytest.mark.parametrize("language", ["c", pytest.param("rs", marks=pytest.mark.slow)])
def test_a_right_kernel_passes_and_the_mistake_is_named(language: str, tmp_path: Path) -> None:
    right = oracle.from_c(build(language, tmp_path / "right.so"), "attend")
    wrong = oracle.from_c(build(language, tmp_path / "wrong.so", *MISTAKES[language]), "attend")
    case = oracle.cases("modules", spec=SPEC, queries=33)[0]
    assert oracle.check(right, SPEC, case.inputs, recipe="float32")
    strided = {name: np.asfortranarray(x) for name, x in case.inputs.items()}
    assert oracle.check(right, SPEC, strided, recipe="float32")
    assert not oracle.check(wrong, SPEC, case.inputs, recipe="float32")
    (name,) = (finding.name for finding in oracle.diagnose(wrong, SPEC, case.inputs, recipe="float32").findings)
    assert name == {"c": "one_future_key_visible", "rs": "key_heads_tiled"}[language]
    declined = oracle.cases("discriminating", spec=SPEC)[0]
    assert right(SPEC, declined.inputs) is NotImplemented


def test_errors(tmp_path: Path) -> None:
    library = build("c", tmp_path / "right.so")
    with pytest.raises(ValueError, match="has no function 'nope'"):
        oracle.from_c(library, "nope")
    with pytest.raises(OSError, match=r"nowhere\.so"):
        oracle.from_c(tmp_path / "nowhere.so", "attend")
    case = oracle.cases("modules", spec=SPEC, queries=5)[0]
    with pytest.raises(RuntimeError, match=r"broken returned 77, expected 0, or 1 for what it does not serve"):
        oracle.from_c(library, "broken")(SPEC, case.inputs)
    with pytest.raises(TypeError, match=r"q: got dtype complex64, expected float32"):
        oracle.from_c(library, "attend")(SPEC, {**case.inputs, "q": case.inputs["q"].astype(np.complex64)})


ECHO = """
#include "refdiff_kernel.h"
int32_t echo(const char *spec, const refdiff_array *in, int32_t n_in, const refdiff_array *out, int32_t n_out) {
    const refdiff_array *dout = refdiff_find(in, n_in, "dout"), *dv = refdiff_find(out, n_out, "dv");
    float *lse = refdiff_find(out, n_out, "lse")->data;
    if (spec[0] != '{' || (dout == 0) != (dv == 0) || refdiff_find(in, n_in, "nothing")) return 2;
    int64_t count = dv ? dv->shape[0] * dv->shape[1] * dv->shape[2] * dv->shape[3] : 0;
    for (int64_t i = 0; i < count; i++) ((float *)dv->data)[i] = 3;
    lse[0] = 5;
    return REFDIFF_DONE;
}
"""


def test_what_is_left_alone_is_not_an_output(tmp_path: Path) -> None:
    (tmp_path / "echo.c").write_text(ECHO)
    kernel: Any = oracle.from_c(build("c", tmp_path / "echo.so", source=tmp_path / "echo.c"), "echo", gradients=True)
    case = oracle.cases("modules", spec=SPEC, queries=5)[0]
    assert kernel(SPEC, case.inputs).keys() == {"out", "lse"}
    found = kernel(SPEC, case.inputs, case.dout)
    assert found.keys() == {"out", "lse", "dv"}
    assert (found["dv"] == 3).all()


def test_the_header_has_the_codes_in_order() -> None:
    text = HEADER.read_text(encoding="utf-8")
    codes = text[text.index("REFDIFF_FLOAT32") : text.index("};")].lower().replace("refdiff_", "")
    assert tuple(word.strip() for word in codes.split(",")) == DTYPES
    assert len(text.splitlines()) <= 40
