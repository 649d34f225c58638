"""The tester is tested: mistakes planted in the kernels are caught, and so is all that the emulation watches."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.backends.cupy import device
from tests.backends.cupy.cases import CASES
from tests.backends.cupy.test_kernels import hold

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
