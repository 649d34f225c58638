"""Every kernel of CUDA is held to its layer, on a CPU: the sources are those that NVRTC compiles (tests/cuda)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for
from refdiff.backends.cupy import CupyKernels
from refdiff.backends.cupy.tuning import Tuning
from tests.backends.cupy.cases import CASES
from tests.backends.vjp_cases import leaves, normal, same_signature
from tests.cuda.emulation import BFLOAT16, EmulatedDevice
from tests.cuda.there import cuda

FEW = Tuning.few_rows
KERNELS = [name for name in layers.__all__ if hasattr(CupyKernels(EmulatedDevice()), name)]
OF_WEIGHTS = ("linear", "swiglu", "embedding")
"""Kernels whose weights alone may be of a 16-bit type."""

ON_TENSOR_CORES = ("diff_attention", "diff_heads_hf", "plain_heads")
"""Kernels that round the weights of the softmax where tensor cores multiply them with values."""

FLOAT32_ARGUMENTS = {
    "diff_attention": (5,), "diff_attention_vjp": (6,), "diff_heads_hf": (3,), "diff_lambda": (0, 1, 2, 3),
    "rope": (1, 2),
}  # fmt: skip
"""Which arguments are float32 whatever the numbers are: λ and its vectors, cos and sin."""

ROUNDING = {"float32": 2.0**-23, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def cast(name: str, args: tuple[Any, ...], dtype: Any) -> tuple[Any, ...]:
    """Copy arguments to the types that a model on the device has, read-only, views staying views."""

    def one(x: Any, to: Any) -> Any:
        if isinstance(x, dict):
            return {key: one(value, to) for key, value in x.items()}
        if not isinstance(x, np.ndarray | np.floating) or np.asarray(x).dtype.kind != "f":
            return x
        x = np.asarray(x)
        new = np.empty_like(x, dtype=to, subok=False) if x.flags.c_contiguous else x.astype(to, order="K")
        new[...] = x
        new.flags.writeable = False
        return new

    if name in OF_WEIGHTS:
        return tuple(one(x, dtype if isinstance(x, dict) or i == 1 else np.float32) for i, x in enumerate(args))
    singles = FLOAT32_ARGUMENTS.get(name, ())
    return tuple(one(x, np.float32 if i in singles else dtype) for i, x in enumerate(args))


def widened(x: Any, dtype: Any) -> Any:
    """The same values as NumPy's own numbers, for the layers."""
    if isinstance(x, dict):
        return {key: widened(value, dtype) for key, value in x.items()}
    if isinstance(x, np.ndarray) and x.dtype.name in ROUNDING:
        return x.astype(dtype)
    return x


def terms_of_dlambda(given: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The sum of the sizes of all that adds up to ∂L/∂λ: |g| |v|ᵀ ⊙ A₂."""
    g, q1, k1, q2, k2, v, _ = (widened(x, np.float64) for x in given)
    one = np.float64(1)
    return float(abs(layers.diff_attention_vjp(np.abs(g), q1, k1, q2, k2, np.abs(v), one, **kwargs)[-1]))


def rounding_of_scores(streams: tuple[Any, ...]) -> float:
    """What a weight may be off by, in parts of itself: a score is a sum of d products, added one after the other."""
    q, k = (x.astype(np.float64) for x in streams[:2])
    scores = np.abs(q @ np.repeat(k, q.shape[1] // k.shape[1], axis=1).swapaxes(2, 3)).max() / np.sqrt(q.shape[3])
    return float(2.0**-24 * np.sqrt(q.shape[3]) * scores)


def rounding_of_weights(name: str, given: tuple[Any, ...]) -> float:
    """What a sum of values is off by where each weight of both maps is off by 1, in parts of the weight."""
    v, *lambda_ = given[4:6] if name == "diff_attention" else given[2:4]
    return float(np.abs(v.astype(np.float64)).max()) * (1 + float(np.abs(lambda_[0]).max() if lambda_ else 0))


def normed(off: float, given: tuple[Any, ...], kwargs: dict[str, Any], exact: np.ndarray) -> np.ndarray:
    """What the normed heads `exact` are off by where each number of a head h was off by `off` before.

    With r = √(mean h² + ε), and r' after, which is at least r − off, and y = c h / r: y' − y is c (h' − h) / r' and
    y (r − r') / r', so at most off (c + |y|) / (r − off); and never more than 2 c √e.
    """
    q, k, v, lambda_, lambda_init, eps = (widened(x, np.float64) for x in given)
    H, K, e, c = q.shape[1] // 2, k.shape[1] // 2, v.shape[3], 1 - lambda_init
    heads = layers.diff_attention(q[:, :H], k[:, :K], q[:, H:], k[:, K:], v, lambda_, **kwargs)
    r = np.sqrt((heads**2).mean(axis=-1) + eps).swapaxes(1, 2)  # of (B, T, H)
    left = np.maximum(r - off, off / (2 * np.sqrt(e))).repeat(e, axis=-1)
    return np.minimum(off * (c + np.abs(exact)) / left, 2 * c * np.sqrt(e))


CUDA = cuda()


def moved(x: Any, move: Any, kind: type) -> Any:
    """Move the arrays of `kind` in dicts and tuples; the rest stays."""
    if isinstance(x, dict):
        return {key: moved(value, move, kind) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(moved(value, move, kind) for value in x)
    return move(x) if isinstance(x, kind) else x


def run_twice(name: str, given: tuple[Any, ...], kwargs: dict[str, Any], real: bool, **device: Any) -> list[Any]:
    """Results of a kernel on the CUDA device, or emulated with threads in two orders."""
    results = []
    for order in (0, 2):
        kernels = CupyKernels() if real else CupyKernels(EmulatedDevice(order=order, **device))
        call = getattr(ops_for(kernels) if name in ("swiglu", "diff_heads_hf") else kernels, name)
        if real:
            there, options = (moved(x, CUDA.asarray, np.ndarray) for x in (given, kwargs))
            results.append(moved(call(*there, **options), CUDA.asnumpy, CUDA.ndarray))
        else:
            results.append(call(*given, **kwargs))
    return results


def hold(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: Any, *, real: bool = False, **device: Any
) -> bool:
    """Fail unless a kernel is as near to the float64 truth as its layer in float32; False where it declines."""
    given = cast(name, args, dtype)
    if "bias" in kwargs:
        kwargs = {**kwargs, "bias": kwargs["bias"].astype(np.float32)}
    results = run_twice(name, given, kwargs, real, **device)
    if results[0] is NotImplemented:
        return False
    layer = getattr(layers, name)
    exacts, references = (
        leaves(layer(*(widened(x, to) for x in given), **{key: widened(x, to) for key, x in kwargs.items()}))
        for to in (np.float64, np.float32)
    )
    for one, again, exact, reference in zip(*map(leaves, results), exacts, references, strict=True):
        if exact is None:
            assert one is None
            continue
        np.testing.assert_array_equal(one, again)  # whichever thread goes first
        assert one.shape == exact.shape
        size = np.abs(exact).max(initial=0)
        kind = np.dtype(np.float32) if name in OF_WEIGHTS or (exact.ndim == 0) else np.dtype(dtype)
        if name == "diff_attention_vjp" and exact is exacts[-1]:
            kind = np.dtype(np.float32)  # ∂L/∂λ is of λ's type, and what rows that share λ add to it cancels
            size = terms_of_dlambda(given, kwargs)
        assert one.dtype == kind
        allowed = 2 * np.abs(reference - exact).max(initial=0) + 4 * 2.0**-23 * size
        if "heads" in name or "attention" in name:
            back = name.endswith("_vjp")  # where g Vᵀ, and what is left of it after its mean, are such sums too
            allowed += (3 if back else 1) * rounding_of_scores(given[back:]) * size
        if kind.name != "float32":
            allowed += ROUNDING[kind.name] * size
            if name in ON_TENSOR_CORES and (real or device.get("capability")):  # of the softmax
                off = rounding_of_weights(name, given) * ROUNDING[kind.name]
                allowed = allowed + (normed(off, given, kwargs, exact) if name == "diff_heads_hf" else off)
            if name == "diff_heads_hf":  # of the heads, before they are normed
                allowed += ROUNDING[kind.name] * size
        if name == "swiglu" and given[0].size > FEW * given[0].shape[-1]:  # of x, and of what lies between the products
            allowed += 8 * ROUNDING[np.dtype(dtype).name] * size
        assert (np.abs(one.astype(np.float64) - exact) <= allowed).all(), (name, kwargs.keys(), kind)
    return True


def test_every_kernel_has_cases() -> None:
    assert set(KERNELS) == set(CASES)


@pytest.mark.parametrize("name", KERNELS)
def test_signature_is_the_layers(name: str) -> None:
    assert same_signature(getattr(CupyKernels(EmulatedDevice()), name), getattr(layers, name), "ops", "saved")


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_its_layer(name: str) -> None:
    """Every case in one type, and one case in the others."""
    cases = list(CASES[name](False))
    first = np.float16 if name == "linear" else np.float32
    served = [hold(name, args, kwargs, first) for args, kwargs in cases]
    assert any(served), f"{name} declined every case"
    for dtype in (np.float16, BFLOAT16):
        assert hold(name, *cases[served.index(True)], dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "every"),
    [(np.float32, 7), *(pytest.param(n, 1, marks=pytest.mark.nightly) for n in (np.float32, np.float16, BFLOAT16))],
    ids=["float32, a seventh", "float32", "float16", "bfloat16"],
)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_its_layer_in_all_sizes(name: str, dtype: Any, every: int) -> None:
    served = [hold(name, args, kwargs, dtype) for args, kwargs in itertools.islice(CASES[name](True), 0, None, every)]
    assert all(served)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ON_TENSOR_CORES)
def test_kernel_equals_its_layer_with_tensor_cores_and_split_keys(name: str, dtype: Any) -> None:
    """With its tensor cores, and so many multiprocessors that keys are split: what tests/gpu_run.sh asks of a card."""
    served = [
        hold(name, args, kwargs, dtype, capability=90, multiprocessors=132) for args, kwargs in CASES[name](False)
    ]
    assert all(served)


@pytest.mark.parametrize("multiprocessors", [0, 3, 132])
def test_keys_split_among_blocks_give_the_same_up_to_rounding_error(multiprocessors: int) -> None:
    """A split that a mask hides wholly, here the first half of the keys, adds nothing."""
    args, kwargs = [case for case in CASES["diff_attention"](False) if case[0][1].shape[2] == 1031][2]
    assert not kwargs["mask"][0, 0, 0, :500].any()
    assert hold("diff_attention", args, kwargs, np.float32, multiprocessors=multiprocessors)
    device = EmulatedDevice(multiprocessors=multiprocessors)
    CupyKernels(device).diff_attention(*cast("diff_attention", args, np.float32), **kwargs)
    assert device.launched == (["attention", "combine"] if multiprocessors else ["attention"])


def shifted(x: np.ndarray) -> np.ndarray:
    """Copy to where no row starts at a multiple of eight bytes."""
    view = np.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
    view[...] = x
    return view


def test_rows_may_start_where_numbers_cannot_be_read_together() -> None:
    """There the sums are of the same products in another order; a read of what is not aligned would end the process."""
    x, weight = normal(0, 3, 64).astype(np.float32), normal(1, 13, 64).astype(np.float16)
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    for ours, theirs in ((x, weight), (shifted(x), weight), (x, shifted(weight))):
        y = CupyKernels(EmulatedDevice()).linear(ours, theirs)
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


def test_nan_and_infinity_go_through() -> None:
    """A NaN in a query reaches its own row and no other, as in the layer; it is not taken for a row without keys."""
    args, _ = next(CASES["diff_attention"](False))
    q1, *rest = cast("diff_attention", args, np.float32)
    for bad in (np.nan, np.inf):
        q = q1.copy()
        q[0, 1, 2, 3] = bad
        with np.errstate(invalid="ignore"):
            expected = np.isnan(layers.diff_attention(q, *rest)).all(axis=-1)
        got = np.isnan(CupyKernels(EmulatedDevice()).diff_attention(q, *rest)).all(axis=-1)
        np.testing.assert_array_equal(got, expected)
        assert expected.sum() == 1


one, two = np.ones((1, 2, 3, 5), np.float32), np.ones((1, 2, 4, 5), np.float32)
ONE, MASK = np.float32(1), np.ones((3, 3), bool)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("linear", (np.ones((2, 4)), np.ones((5, 4)))),
        ("linear", (np.ones((2, 3), np.float32), np.ones((5, 4), np.float16))),
        ("embedding", (np.ones((0,), np.int64), np.ones((5, 4)))),
        ("rms_norm", (np.ones((2, 3)), None, 1e-5)),
        ("rms_norm", (np.ones((2, 3), np.float32), np.ones(4, np.float32), 1e-5)),
        ("rms_norm_vjp", (np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), np.ones(4, np.float32), 1e-5)),
        ("rope", (one, *[np.ones((1, 1, 3, 3), np.float32)] * 2)),
        ("rope", (one.astype(np.float64), *[np.ones((1, 1, 3, 2), np.float32)] * 2)),
        ("swiglu", (np.ones((2, 3)), {}, {}, {})),
        (
            "swiglu",
            (np.ones((2, 3), np.float32), *({"weight": np.ones(s, np.float32)} for s in ((5, 3), (1, 3), (3, 5)))),
        ),
        ("diff_lambda", (*[np.ones(5, np.float32)] * 3, np.ones(4, np.float32), 0.8)),
        ("diff_lambda", (*[np.ones(10, np.float32)[::2]] * 4, 0.8)),
        ("diff_attention", (*[one.astype(np.float64)] * 5, ONE)),
        ("diff_attention", (*[one] * 4, two, ONE)),
        ("diff_attention", (*[one] * 5, np.ones(3, np.float32))),
        ("diff_attention", (*[one] * 5, None)),  # no λ, and two maps: float32 of nothing is NaN
        ("diff_attention_vjp", (*[one] * 6, None)),
        ("diff_attention", (*[one] * 5, ONE, MASK.astype(np.float32))),
        ("diff_attention", (*[one] * 4, np.ones((1, 2, 3, 513), np.float32), ONE)),
        ("diff_attention_vjp", (two, *[one] * 5, ONE)),
        ("plain_heads", (one, one, one, np.ones((1, 4, 3, 3), bool))),
        ("plain_heads_vjp", (np.ones((1, 3, 11), np.float32), one, one, one)),
    ],
)
def test_unsupported_arguments_are_left_to_the_layer(name: str, args: tuple[Any, ...]) -> None:
    device = EmulatedDevice()
    assert getattr(CupyKernels(device), name)(*args) is NotImplemented
    assert device.launched == []


def test_a_device_with_little_shared_memory_leaves_wide_heads_to_the_layer() -> None:
    wide = np.ones((1, 2, 3, 256), np.float32)
    assert CupyKernels(EmulatedDevice(shared=64 * 1024)).diff_attention(*[wide] * 5, ONE) is NotImplemented
