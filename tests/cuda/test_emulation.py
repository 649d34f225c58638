"""The tester is tested: mistakes planted in the kernels are caught, and so is all that the emulation watches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.backends.cupy import device
from tests.backends.cupy.cases import CASES
from tests.backends.cupy.test_kernels import hold
from tests.cuda.emulation import ORDERS, EmulatedDevice

MISTAKES = [
    ("diff_attention", "key <= rows.S - s.T + rows.query(row)", "key < rows.S - s.T + rows.query(row)"),
    ("diff_attention", "key <= rows.S - s.T + rows.query(row)", "key <= rows.query(row)"),
    ("diff_attention", "S - T + query(min(end, count) - 1) + 1", "S - T + query(min(end, count) - 1)"),
    ("diff_attention", "return kv * G + row % G", "return kv + row % G * K"),
    ("diff_attention", "return row / G", "return row % T"),
    ("diff_attention", "b(blockIdx.z / s.K)", "b(0)"),
    ("diff_attention", "m ? mask2 : mask1", "mask1"),
    ("diff_attention", "m ? bias2 : bias1", "bias2"),
    ("diff_attention", "z * s.scale + (bias ?", "s.scale * z * (bias ?"),
    ("diff_attention", "m ? k2 : k1, s.k", "k1, s.k"),
    ("diff_attention", "float shrink = expf(top[m][i] - base);", "float shrink = 1.0f;"),
    ("diff_attention", "if (seen && mask) seen =", "if (mask) seen ="),
    ("diff_attention", "float base = highest == -infinity() ? 0.0f : highest;", "float base = highest;"),
    ("diff_attention", "lambda[rows.at(s.lambda, row)] / sum", "lambda[0] / sum"),
    ("diff_attention", "share *= -lambda[", "share *= lambda["),
    ("diff_attention", "weighted += part[2 + e] * expf(part[0] - top[m])", "weighted += part[2 + e]"),
    ("diff_attention", "first + c < end ? widen", "widen"),
    ("diff_attention", "        __syncthreads();  // all have used the tile before\n", ""),
    ("diff_attention", "        __syncwarp();  // a row's weights are written and read by one warp\n", ""),
    ("diff_attention", "if (row >= rows.count) continue;", ""),
    ("diff_attention", "o[m][e].of[2 * i] *= shrink;", ""),
    ("diff_attention", "4 * g + there", "4 * t + there"),
    ("diff_attention", "high[0], high[1]), pack(high[2], high[3])", "high[2], high[3]), pack(high[0], high[1])"),
    ("diff_attention", "tile[c * STRIDE_V + k] =", "tile[k * STRIDE_V + c] ="),
    ("diff_attention", "highest = max_over(highest, 4);", ""),
    ("diff_attention", "pack(low[0], low[1])", "pack(low[1], low[0])"),
    ("diff_attention_vjp", "(gv[i][j] - of.pull)", "gv[i][j]"),
    ("diff_attention_vjp", "(gv[i][j] - of.pull) * s.scale", "(gv[i][j] - of.pull)"),
    ("diff_attention_vjp", "max(key - (s.S - s.T), 0) * rows.G", "max(key - (s.S - s.T), 0) * rows.G + ROWS"),
    ("diff_attention_vjp", "dlambda[row] = -pull", "dlambda[row] = pull"),
    ("diff_attention_vjp", "m == 0 ? 1.0f : there ? -lambda", "m == 0 ? 1.0f : there ? lambda"),
    ("diff_attention_vjp", "if (key + y + 16 * j >= end) continue;", ""),
    ("rms_norm", "widen(x[i]) / root", "widen(x[i]) / (root + 1e-3f)"),
    ("rms_norm", "    __syncthreads();\n", ""),
    ("rms_norm_vjp", "(h - widen(x[i]) * r * mean)", "h"),
    ("rms_norm_vjp", "* roots[row]", ""),
    ("rms_norm_vjp", "for (int i = 1; i < 8; i++) sum", "for (int i = 1; i < 7; i++) sum"),
    ("rms_norm_vjp", "row += gridDim.y * 8", "row += 8"),
    ("rope", "interleaved ? 2 * i + 1 : i + turning", "interleaved ? 2 * i + 1 : i + size / 2"),
    ("rope", "q * cosine[i] + p * sine[i]", "q * cosine[i] - p * sine[i]"),
    ("rope", "for (int i = 2 * turning + threadIdx.x", "for (int i = 2 * turning + 1 + threadIdx.x"),
    ("diff_lambda", "second += q2[i] * k2[i]", "second += q1[i] * k2[i]"),
    ("diff_lambda", "- expf(second) + init", "- expf(second)"),
    ("swiglu", "1.0f + expf(-x)", "1.0f + expf(x)"),
    ("swiglu", "1.0f + expf(-z)", "1.0f + expf(z)"),
    ("swiglu", "products(of_up, up", "products(of_up, gate"),
    ("diff_heads_hf", "/ root * factor", "/ root"),
    ("linear", "if (threadIdx.x % 32 == 0 && first + r < rows)", "if (threadIdx.x % 32 == 0)"),
    ("linear", "int i = whole + lane;", "int i = lane;"),
    ("linear", "% tiles * ROWS", "% tiles"),
    ("linear", "widen(eight.of[4 + j])", "widen(eight.of[j])"),
]


QUICK = 4


@pytest.mark.parametrize(
    ("kernel", "right", "wrong"),
    [
        pytest.param(*mistake, id=f"{mistake[0]} {i}", marks=() if i < QUICK else pytest.mark.slow)
        for i, mistake in enumerate(MISTAKES)
    ],
)
def test_a_planted_mistake_is_caught(kernel: str, right: str, wrong: str) -> None:
    places = [file.name for file in device.SOURCES.glob("*.cu*") if right in file.read_text()]
    assert len(places) >= 1, "the source has changed: plant it anew"
    mma = not any(place in places for place in ("attention.cu", "attention.cuh", "attention_rows.cuh", "numbers.cuh"))
    mma = mma and kernel == "diff_attention"
    dtype = np.float16 if kernel == "linear" or mma else np.float32
    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        for args, kwargs in CASES[kernel](False):
            hold(kernel, args, kwargs, dtype, change=lambda text: text.replace(right, wrong), multiprocessors=4,
                 capability=80 * mma)  # fmt: skip


COPY = 'extern "C" __global__ void copy(const float* x, float* y, int n) {{ const int i = threadIdx.x; {} }}'


def run_source(monkeypatch: pytest.MonkeyPatch, body: str, shared: int = 0, order: int = 0) -> Any:
    """Run a kernel of 64 threads that is to copy 64 numbers."""
    monkeypatch.setattr(device, "source", lambda name: COPY.format(body))
    x, y = np.arange(64, dtype=np.float32), np.full(64, np.nan, np.float32)
    x.flags.writeable = False
    EmulatedDevice(order=order).launch("copy.cu", "copy", {}, (1, 1, 1), 64, (x, y, np.int32(64)), shared)
    return y


SHARED = "extern __shared__ float shared[];"


@pytest.mark.parametrize("order", ORDERS)
def test_barriers_and_warp_shuffles_synchronize_threads(monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    backwards = f"{SHARED} shared[i] = x[i]; __syncthreads(); y[i] = shared[63 - i];"
    np.testing.assert_array_equal(run_source(monkeypatch, backwards, 256, order), np.arange(63, -1, -1))
    in_pairs = "y[i] = __shfl_xor_sync(0xffffffff, x[i], 1) + 100.0f * __shfl_xor_sync(0xffffffff, x[i], 16);"
    i = np.arange(64)
    np.testing.assert_array_equal(run_source(monkeypatch, in_pairs, 0, order), (i ^ 1) + 100.0 * (i ^ 16))


@pytest.mark.parametrize(
    ("body", "shared", "says"),
    [
        ("y[i + 1] = x[i];", 0, "argument 1: written past its end"),
        ("y[i - 1] = x[i];", 0, "argument 1: written before its begin"),
        ("((float*)x)[i] = 7.0f;", 0, "argument 0: an input was written to"),
        (f"{SHARED} shared[i + 1] = x[i];", 256, "wrote past the shared memory"),
        ("if (i < 7) __syncthreads();", 0, "threads wait in vain: 7 at a barrier, 0 for their warp, and 57 have ended"),
        ("if (i < 32) __syncthreads(); else __syncwarp();  if (i > 60) __syncthreads();", 0, "wait in vain"),
    ],
)
def test_errors_of_a_kernel_are_reported(monkeypatch: pytest.MonkeyPatch, body: str, shared: int, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        run_source(monkeypatch, body, shared)


def test_memory_that_no_thread_wrote_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    y = run_source(monkeypatch, f"{SHARED} if (i != 5) shared[i] = x[i]; __syncthreads(); y[i] = shared[i];", 256)
    assert np.isnan(y[5])
    assert np.isfinite(np.delete(y, 5)).all()
    past = run_source(monkeypatch, "y[i] = x[i + 1];")
    assert np.isnan(past[-1])
    assert np.isnan(EmulatedDevice().empty((3,), np.float16)).all()


def test_a_missing_barrier_depends_on_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"{SHARED} shared[i] = x[i]; y[i] = shared[63 - i];"
    first, last = (run_source(monkeypatch, body, 256, order) for order in (0, 1))
    assert not np.array_equal(first, last)
