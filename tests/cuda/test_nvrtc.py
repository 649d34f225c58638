"""Every source compiles for every device and type, by the compiler that CuPy calls, and keeps its sums in registers.

CI takes every device and type with a few sizes in turn; `REFDIFF_CUDA_ALL=1` takes all. Either way
`pytest -m slow -s tests/cuda/test_nvrtc.py` prints the registers and what was spilled.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import pytest

from refdiff.backends.cupy import device
from refdiff.backends.cupy.geometry import attention_tiles, mma_tiles
from tests.cuda.nvrtc import Nvrtc
from tests.cuda.wheels import fetched

COMPILERS = {"CUDA 12": "nvidia-cuda-nvrtc-cu12==12.*", "CUDA 13": "nvidia-cuda-nvrtc==13.*"}
LIMITS = {"sm_75": 64, "sm_80": 163, "sm_90": 227, "sm_100": 227}
"""KiB of shared memory that a block may have."""

SOURCES = sorted(path.name for path in device.SOURCES.glob("*.cu"))


def variants(name: str, number: str, limit: int) -> list[dict[str, Any]]:
    """What a source is compiled with, for a device with so much shared memory."""
    if name == "attention_mma.cu":
        return mma_variants(number, limit)
    if name.startswith("attention"):
        backward = name == "attention_vjp.cu"
        shapes = [
            (d, e, maps, attention_tiles(d, e, maps, rows, limit * 1024, backward=backward))
            for d, e, maps, rows in (
                (32, 64, 2, 4096), (64, 128, 2, 4096), (64, 128, 2, 4), (128, 256, 2, 4096), (256, 512, 2, 4096),
                (64, 64, 2, 4096), (128, 128, 1, 4096),
            )
        ]  # fmt: skip
        return [
            {"NUMBER": number, "MAPS": maps, "D": d, "E": e, "ROWS": tiles.rows, "KEYS": tiles.keys}
            for d, e, maps, tiles in shapes
            if tiles is not None
        ]
    if name == "diff_lambda.cu":
        return [{}]
    if name == "linear.cu":
        return [{"NUMBER": "float", "WEIGHT": number, "ROWS": rows} for rows in (1, 2, 4, 8)]
    if name.startswith("rms_norm"):
        return [{"NUMBER": number, "WEIGHT": number}, {"NUMBER": "float", "WEIGHT": number}]
    return [{"NUMBER": number}]


def mma_variants(number: str, limit: int) -> list[dict[str, Any]]:
    shapes = [
        (d, e, maps, mma_tiles(d, e, maps, rows, limit * 1024))
        for d, e, maps, rows in (
            (64, 128, 2, 4096), (128, 256, 2, 4096), (32, 64, 2, 4096), (64, 64, 2, 4096), (128, 128, 1, 4096),
            (64, 128, 2, 20), (256, 512, 2, 4096),
        )
    ]  # fmt: skip
    # sm_75 multiplies no bfloat16 on tensor cores: attention.cu serves there
    known = ("float16",) if limit == LIMITS["sm_75"] else ("float16", "bfloat16")
    tiles_of = known if number == "float" else (number,) if number in known else ()
    return [
        {"NUMBER": number, "TILE": tile, "MAPS": maps, "D": d, "E": e, "ROWS": tiles.rows, "KEYS": tiles.keys}
        for d, e, maps, tiles in shapes
        for tile in tiles_of
        if tiles is not None
    ]


@functools.cache
def compiler(cuda: str) -> Nvrtc:
    return Nvrtc(fetched(COMPILERS[cuda]))


def check(cuda: str, name: str, architecture: str, defines: dict[str, Any]) -> None:
    """Compile, print what was used, and fail where a thread's numbers do not stay in its registers."""
    text = device.source(name)
    used = compiler(cuda).compile(text, (*device.options(defines), "-ftz=true"), architecture)  # which CuPy adds
    assert set(used) == set(re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(", text))
    for kernel, of in used.items():
        values = " ".join(f"{key}={value}" for key, value in defines.items())
        print(
            f"{cuda} {architecture} {kernel} {values}: {of.registers} registers, {of.stack} stack, {of.spilled} spilled"
        )
        assert of.registers <= {"attention_mma.cu": 255, "attention.cu": 128, "attention_vjp.cu": 128}.get(name, 96)
        assert of.spilled <= 64
        assert of.stack <= 128


@pytest.mark.slow
@pytest.mark.parametrize("number", ["float", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", LIMITS)
def test_every_source_compiles(architecture: str, number: str) -> None:
    """Each device and type by one of the two compilers, in two sizes."""
    turn = list(LIMITS).index(architecture) + 4 * list(device.NUMBERS.values()).index(number)
    for name in SOURCES:
        all_of = variants(name, number, LIMITS[architecture])
        chosen = range(len(all_of)) if os.environ.get("REFDIFF_CUDA_ALL") else {turn, turn + 3}
        for i in chosen:
            if all_of:
                check(list(COMPILERS)[(turn + i) % 2], name, architecture, all_of[i % len(all_of)])


def narrow_loads(ptx: str) -> list[str]:
    """List what is read of global memory in pieces of other than 16 bytes."""
    loads = re.findall(r"\bld\.global\.(\S+)", ptx)
    assert loads
    return [load for load in loads if not re.search(r"v4\.[bfsu]32$|v2\.[bfsu]64$", load)]


@pytest.mark.slow
@pytest.mark.parametrize("number", ["float", "float16", "bfloat16"])
@pytest.mark.parametrize("cuda", COMPILERS)
def test_weights_are_read_16_bytes_at_a_time(cuda: str, number: str) -> None:
    """And so is x: without the loop over what eights leave, nothing is read by itself but the bias, once a row."""
    text = device.source("linear.cu")
    whole = text.replace("int i = whole + lane; i < inputs; i += 32", "int i = 0; i < 0; i++")
    anywhere = whole.replace("struct __align__(8 * sizeof(WEIGHT)) Eight", "struct Eight")
    assert len({text, whole, anywhere}) == 3
    for rows in (1, 2, 4, 8):
        defines = device.options({"NUMBER": "float", "WEIGHT": number, "ROWS": rows})
        of_bias, more = (narrow_loads(compiler(cuda).ptx(one, defines, "compute_80")) for one in (whole, anywhere))
        assert set(of_bias) == {"f32"}
        assert len(of_bias) <= 4 * rows, "`linear` has one, `gated_linear` two, each in one place or two"
        assert len(more) > 4 * rows, "weights that may lie anywhere would not show"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "tile", "instruction"),
    [
        ("compute_75", "float16", "m16n8k8.row.col.f32.f16.f16.f32"),
        ("compute_80", "float16", "m16n8k16.row.col.f32.f16.f16.f32"),
        ("compute_90", "bfloat16", "m16n8k16.row.col.f32.bf16.bf16.f32"),
    ],
)
@pytest.mark.parametrize("cuda", COMPILERS)
def test_attention_multiplies_on_tensor_cores(cuda: str, architecture: str, tile: str, instruction: str) -> None:
    """Scores, and values by their weights: an instruction for each matrix of both."""
    (defines, *_) = [one for one in mma_variants("float", 227) if one["TILE"] == tile]
    ptx = compiler(cuda).ptx(device.source("attention_mma.cu"), device.options(defines), architecture)
    found = re.findall(r"\bmma\.sync\.aligned\.(\S+)", ptx)
    assert set(found) == {instruction}
    assert len(found) >= defines["MAPS"] * (defines["KEYS"] // 8 + defines["KEYS"] // 16 * defines["E"] // 8)


@pytest.mark.slow
def test_a_source_that_is_wrong_does_not_compile() -> None:
    for cuda in COMPILERS:
        with pytest.raises(AssertionError, match="undefined"):
            compiler(cuda).compile(
                device.source("gated.cu").replace("size", "rows_of_x", 1), ("-DNUMBER=float",), "sm_90"
            )
