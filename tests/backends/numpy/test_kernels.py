"""Every kernel is tested against its layer; the kernels are read from the namespace, so that none is forgotten."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for
from refdiff.backends.numpy import NumpyKernels
from tests.backends.tuned import tune
from tests.backends.vjp_cases import VJP_CASES, Case, leaves, normal, same_signature, seen, streams
from tests.layers import test_errors as errors

FAST = NumpyKernels(3)
KERNELS = {name: getattr(FAST, name) for name in layers.__all__ if hasattr(FAST, name)}


SINGLE = np.ones((2, 4), np.float32)
HEADS = np.ones((1, 4, 3, 5)), np.ones((1, 2, 3, 5)), np.ones((1, 1, 3, 10))


def linear_cases() -> Iterator[Case]:
    for rows in ((1, 1), (1, 2), (2, 7), (1, 131), ()):
        for bias in (None, normal(2, 13)):
            yield (normal(0, *rows, 11), normal(1, 13, 11), bias), {}
    yield (normal(0, 2, 5, 11, scale=1e-4)[:, ::2], normal(1, 11, 13).T), {}
    yield (normal(0, 0, 11), normal(1, 13, 11)), {}
    for rows in (1, 2, 8, 9, 10, 16, 17, 24, 25, 130):  # large enough for several threads and pieces
        yield (normal(0, rows, 2048), normal(1, 1031, 2048, scale=0.02), normal(2, 1031)), {}
    for rows, outputs, terms in (
        *((rows, 257, 8192) for rows in (2, 8, 10, 16, 24)),  # long sums, and of few outputs
        *((1, 519, 8192), (1, 1031, 5003), (1, 3, 2**18)),
        *((8, 5, 8192), (16, 2, 8192), (16, 3, 8192), (16, 16, 2048), (64, 5, 2048), (16, 33, 5003), (4, 65, 28672)),
    ):
        yield (normal(0, rows, terms), normal(1, outputs, terms)), {}


def embedding_cases() -> Iterator[Case]:
    for shape in ((2, 3), (7,), (1, 1)):
        yield (np.random.default_rng(0).integers(0, 13, shape), normal(1, 13, 11)), {}


def rms_norm_cases() -> Iterator[Case]:
    for scale in (1.0, 1e-4, 1e3):
        for weight in (None, normal(1, 11)):
            yield (normal(0, 2, 3, 11, scale=scale), weight, 1e-5), {}
    yield (normal(0, 2, 11, 3).swapaxes(1, 2), normal(1, 11), 0.0), {}
    yield (normal(0, 131, 1031).T, normal(1, 131), 1e-5), {}  # feature-major, several blocks and threads
    for weight in (None, normal(1, 131)):
        yield (normal(0, 1031, 131), weight, 1e-5), {}  # and by rows
    yield (normal(0, 0, 11), normal(1, 11), 1e-5), {}


def turns(B: int, T: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    angles = normal(7, B, 1, T, n, scale=9.0)
    return np.cos(angles), np.sin(angles)


def rope_cases() -> Iterator[Case]:
    for interleaved in (False, True):
        for B, one, n in ((2, 2, 7), (3, 1, 7), (2, 1, 5)):  # positions of each row, of all, and a part that stays
            yield (normal(0, B, 3, 5, 14), *turns(one, 5, n)), {"interleaved": interleaved}
        heads = normal(1, 3 * 14, 2 * 5).T.reshape(2, 5, 3, 14).swapaxes(1, 2)  # as they come from a projection
        yield (heads, *turns(2, 5, 7)), {"interleaved": interleaved}
        yield (normal(2, 1, 3, 2053, 34), *turns(1, 2053, 17)), {"interleaved": interleaved}
        yield (normal(0, 1, 0, 3, 4), *turns(1, 3, 2)), {"interleaved": interleaved}


def activation_cases() -> Iterator[Case]:
    for name in ("silu", "swish", "gelu"):
        yield (normal(0, 2, 3, 11, scale=3.0), name), {}
    yield (normal(0, 1031, 1024, scale=3.0), "silu"), {}
    yield (normal(0, 1031, 1024, scale=3.0).T, "silu"), {}
    yield (np.array([-1e4, -100.0, -0.0, 0.0, 100.0, 1e4]), "silu"), {}


def swiglu_cases() -> Iterator[Case]:
    large = 2**16 + 5  # for several threads
    for rows, inner in (
        *(((1, 1), 13), ((1, 1), large), ((2, 7), 13), ((2, 7), large)),
        *(((3, 1), large), ((1, 5), 2**17), ((1, 24), 2**15)),
    ):
        weights = [{"weight": normal(i, *shape, scale=0.3)} for i, shape in ((1, (inner, 11)), (2, (inner, 11)))]
        biased = [{**p, "bias": normal(i, inner)} for i, p in enumerate(weights)]
        for projections in (weights, biased, (weights[0], biased[1])):
            yield (normal(0, *rows, 11), *projections, {"weight": normal(3, 11, inner, scale=0.3)}), {}
        yield (normal(0, *rows, 11), *weights, {"weight": normal(3, 11, inner, scale=0.3)}), {"act": "gelu"}


def diff_attention_cases() -> Iterator[Case]:
    sizes = (
        (2, 3, 3, 5, 5, 7, 14),
        (1, 6, 2, 1, 11, 5, 3),
        (2, 4, 2, 7, 13, 16, 6),
        (1, 1, 1, 131, 257, 5, 4),
        (2, 2, 1, 300, 300, 3, 2),
        (2, 4, 2, 1, 2053, 16, 8),  # one token, and some, over a long cache: keys and values in pieces
        (2, 8, 4, 7, 1031, 16, 8),
    )
    for seed, (B, H, K, T, S, d, e) in enumerate(sizes):
        *maps, v, one = streams(B, H, K, T, S, d, e)
        for lam in (np.asarray(-1.3), normal(seed, B, H, T, 1)):
            yield (*maps, v, lam), {}
        for see in seen(seed, B, H, T, S, 2):
            yield (*maps, v, one), see
        yield (*(30 * x for x in maps), v, np.float64(1.0)), {}
    for seed, (S, T, d) in enumerate(itertools.product((200, 1100, 4100), (1, 2, 5, 15, 40), (32, 64))):
        g = np.random.default_rng(seed)  # maps that are nearly flat, so that what remains is a small difference
        q, k = 0.05 * g.normal(size=(2, 2, 4, T, d)), g.normal(size=(2, 2, 1, S, d))
        yield (q[0], k[0], q[1], k[1], g.normal(size=(2, 1, S, 2 * d)), np.float64(0.7)), {}
    for seed, (S, T, d) in enumerate(itertools.product((16, 71, 129, 513), (1, 4, 8, 15), (64, 128))):
        g = np.random.default_rng(seed)  # and such as are steep
        q, k, v = g.normal(size=(2, 1, 8, T, d)), g.normal(size=(2, 1, 2, S, d)), g.normal(size=(1, 2, S, 2 * d))
        for scale in (1, 3):
            yield (scale * q[0], k[0], scale * q[1], k[1], v, np.float64(0.7)), {}
    for seed, (T, d) in enumerate(itertools.product((18, 20, 24, 30, 45), (64, 128, 256))):
        g = np.random.default_rng(seed)  # several heads that share their keys, each with few scores
        q, k, v = g.normal(size=(2, 1, 12, T, d)), g.normal(size=(2, 1, 3, T, d)), g.normal(size=(1, 3, T, d))
        yield (5 * q[0], k[0], 5 * q[1], k[1], v, np.float64(0.7)), {}
    for seed, (T, lam) in enumerate(itertools.product((40, 300), (0.9, 0.99))):
        q, k, v = normal(seed, 2, 2, 4, T, 32), normal(seed, 2, 2, 2, T, 32), normal(seed, 2, 2, T, 64)
        yield (q[0], k[0], q[1], k[1], v, np.float64(lam), np.eye(T, dtype=bool)), {}  # each query sees itself alone
    for seed, (T, S, e, mean) in enumerate(
        ((17, 2000, 64, 10), (300, 2000, 64, 10), (20, 1020, 8, 0), (40, 1100, 8, 0))
    ):
        q, k = normal(seed, 2, 1, 16, T, 64), normal(seed + 9, 2, 1, 4, S, 64)
        yield (q[0], k[0], q[1], k[1], normal(seed, 1, 4, S, e) + mean, np.float64(0.7)), {}
    for seed, lam in enumerate((0.8, 0.95)):
        q, k = normal(seed, 2, 2, 4, 1, 16), normal(seed, 2, 2, 1, 90, 16)
        v, one = normal(seed, 2, 1, 90, 32), np.arange(90) == 7
        yield (q[0], k[0, ..., :1, :], q[1], k[1, ..., :1, :], v[..., :1, :], np.float64(lam)), {}
        yield (q[0], k[0], q[1], k[1], v, np.float64(lam), one), {}  # one key that is seen: a difference of 1 and λ


def diff_lambda_cases() -> Iterator[Case]:
    for d, scale in ((1, 1.0), (64, 0.1), (128, 0.5)):
        yield (*normal(d, 4, d, scale=scale), 0.2), {}


def diff_heads_hf_cases() -> Iterator[Case]:
    """Few queries, from which nothing is hidden; all others are left to the layer, and to `diff_attention`."""
    for seed, (B, H, K, T, S, d, e) in enumerate(
        (
            (1, 4, 2, 1, 1, 8, 16), (2, 4, 2, 1, 11, 5, 3), (1, 16, 4, 1, 1031, 64, 128), (3, 8, 4, 1, 300, 64, 128),
            (2, 6, 1, 7, 71, 16, 8), (1, 16, 4, 15, 515, 64, 128),
        )
    ):  # fmt: skip
        g = np.random.default_rng(seed)
        q, k, v = g.normal(size=(B, 2 * H, T, d)), g.normal(size=(B, 2 * K, S, d)), g.normal(size=(B, K, S, e))
        yield (q, k, v, np.float64(0.7), 0.2, 1e-5), {}
        yield (q, k, v, np.asarray(-1.3), 0.6, 0.0), {"causal": False}
        yield (2 * q, 2 * k, v, np.float64(0.3), 0.8, 1e-5), {}
        yield (q, k, v, np.float64(0.7), 0.2, 1e-5, None, g.normal(size=(1, 2 * H, T, S))), {}


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "embedding": embedding_cases,
    "linear": linear_cases,
    "rms_norm": rms_norm_cases,
    "rope": rope_cases,
    "rope_vjp": lambda: (((normal(3, *x.shape), x, *turn), options) for (x, *turn), options in rope_cases()),
    "activation": activation_cases,
    "swiglu": swiglu_cases,
    "diff_attention": diff_attention_cases,
    "diff_lambda": diff_lambda_cases,
    "diff_heads_hf": diff_heads_hf_cases,
    **VJP_CASES,
}


def cast(values: Any, dtype: Any) -> Any:
    """Copy arrays to a dtype, read-only, so that a kernel that writes to an input fails."""
    if isinstance(values, dict):
        return {name: cast(value, dtype) for name, value in values.items()}
    if isinstance(values, (np.ndarray, np.floating)) and np.asarray(values).dtype.kind == "f":
        values = np.array(values, dtype=dtype)
        values.flags.writeable = False
    return values


def test_every_kernel_has_cases() -> None:
    assert set(KERNELS) == set(CASES)


@pytest.mark.parametrize("name", KERNELS)
def test_signature_is_the_layers(name: str) -> None:
    assert same_signature(KERNELS[name], getattr(layers, name), "ops", "lse")


COSTLY = ("diff_attention", "linear", "swiglu", "swiglu_vjp")


@pytest.mark.parametrize(
    ("name", "every"),
    [
        *((name, 5 if name in COSTLY else 1) for name in KERNELS),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in COSTLY),
    ],
)
def test_kernel_equals_its_layer(name: str, every: int) -> None:
    served, squares = 0, np.zeros(2)
    for args, kwargs in itertools.islice(CASES[name](), 0, None, every):
        truths = leaves(getattr(layers, name)(*args, **kwargs))
        args64, args32 = (tuple(cast(a, t) for a in args) for t in (np.float64, np.float32))
        see32 = cast(kwargs, np.float32)
        result = KERNELS[name](*args64, **kwargs)
        if result is NotImplemented:
            continue
        served += 1
        with FAST.inference_scope():
            threaded = KERNELS[name](*args64, **kwargs)
            singles = KERNELS[name](*args32, **see32), KERNELS[name](*args32, **see32)
        references = leaves(getattr(layers, name)(*args32, **see32))
        exacts = leaves(getattr(layers, name)(*(cast(a, np.float64) for a in args32), **cast(see32, np.float64)))
        outside = leaves(KERNELS[name](*args32, **see32))
        assert len(leaves(result)) == len(truths)
        for one, two, truth, reference, exact, alone, *inside in zip(
            leaves(result), leaves(threaded), truths, references, exacts, outside, *map(leaves, singles), strict=True
        ):
            if truth is None:
                assert one is None
                continue
            assert one.dtype == np.float64
            assert one.shape == truth.shape
            size = np.abs(truth).max(initial=0)
            np.testing.assert_allclose(one, truth, rtol=1e-12, atol=max(1e-13, 1e-14 * size))
            np.testing.assert_allclose(two, one, rtol=1e-12, atol=max(1e-13, 1e-14 * size))
            # float32: no more than twice as far from the float64 truth as the layer itself
            # and a rounding of the largest number; in a backward pass eight, for its sums are of terms that cancel, and
            # how exact they are by luck depends on which kernel BLAS takes
            rounding = (8 if name.endswith("_vjp") else 1) * 2**-23
            allowed = 2 * np.abs(reference - exact).max(initial=0) + rounding * np.abs(exact).max(initial=0)
            np.testing.assert_array_equal(*inside)  # the same numbers every time, whichever thread takes what
            for single in (alone, inside[0]):
                assert single.dtype == np.float32
                assert np.abs(single - exact).max(initial=0) <= allowed
            if np.any(exact):
                errors = ((y - exact) / np.abs(exact).max() for y in (inside[0], reference))
                squares += [np.square(error).mean() for error in errors]
    assert served, f"{name} declined every case"
    assert squares[0] <= 2**2 * squares[1]  # and of all cases together, where luck evens out, no more than twice as far


@pytest.mark.parametrize(("error", "rows"), [(ValueError, errors.ROWS), (IndexError, errors.OUTSIDE)])
def test_kernels_leave_calls_that_a_layer_refuses_to_the_layer(
    error: Any, rows: list[errors.Row], monkeypatch: Any
) -> None:
    """All calls of tests/layers/test_errors.py, through the kernels."""
    ops = ops_for(FAST)
    for name in KERNELS:
        monkeypatch.setattr(errors, name, getattr(ops, name), raising=False)
    for message, call, calls in rows:
        for given in calls:
            with errors.says(error, message.format(*given)):
                call(*given)


@pytest.mark.parametrize(("error", "message", "call", "given"), errors.DERIVED)
def test_kernels_leave_calls_that_a_derivative_refuses_to_the_derivative(
    error: Any, message: str, call: Any, given: Any
) -> None:
    errors.refused_by_derivative(ops_for(FAST), error, message, call, given)


ONES = np.ones((1, 2, 3, 5))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("linear", (SINGLE, np.ones((5, 4)))),
        ("linear", (np.ones((2, 4), int), np.ones((5, 4)))),
        ("embedding", (np.ones(2, bool), np.ones((5, 4)))),
        ("embedding_vjp", (SINGLE, np.array([0, 1]), np.ones((5, 4)))),
        ("rms_norm", (SINGLE, np.ones(4), 1e-5)),
        ("rms_norm_vjp", (np.ones((2, 3)), np.ones((2, 4)), None, 1e-5)),
        ("activation", (np.ones(3, int), "silu")),
        ("swiglu", (SINGLE, *[{"weight": np.ones((4, 4))}] * 3)),
        ("swiglu", (np.ones((3, 0)), *[{"weight": np.ones((7, 0))}] * 2, {"weight": np.ones((0, 7))})),
        ("swiglu", (np.ones(()), *[{"weight": np.ones((4, 4))}] * 3)),
        ("rms_norm_vjp", (np.ones(()), np.ones(()), None, 1e-5)),
        ("swiglu_vjp", (np.ones((2, 3)), np.ones((2, 3)), {}, {}, {})),
        ("diff_attention", (*[ONES] * 4, np.ones((1, 2, 3, 0)), np.float64(0.5))),
        ("diff_attention", (*[ONES.astype(np.float32)] * 5, np.float64(0.5))),
        ("diff_attention", (*[ONES] * 5, np.float64(0.5), None, np.ones((3, 3), np.float32))),
        ("diff_attention", (*[ONES] * 5, np.float64(0.5), np.ones((3, 3)))),
        ("diff_attention", (*[ONES] * 5, np.float64(0.5), None, np.full((3, 3), -np.inf))),
        ("diff_attention_vjp", (np.ones((1, 2, 3, 6)), *[ONES] * 5, np.float64(0.5))),
        ("diff_lambda", (*[np.ones(3)] * 3, np.ones(3, np.float32), 0.2)),
        ("diff_heads_hf", (*HEADS, np.float64(0.5), 0.2, 1e-5, np.ones((3, 3), bool))),
        ("diff_heads_hf", (*HEADS, 0.5, 0.2, 1e-5)),
        ("diff_heads_hf", (*HEADS, np.float64(0.5), 0.2, -1.0)),
        ("diff_heads_hf", (*[np.ones((1, 4, 16, 5))] * 2, np.ones((1, 2, 16, 10)), np.float64(0.5), 0.2, 1e-5)),
        ("plain_heads", (*[ONES] * 3, np.ones((1, 4, 3, 3), bool))),  # for two maps
        ("plain_heads_vjp", (np.ones((1, 3, 11)), *[ONES] * 3)),
        ("linear_vjp", (np.ones((2, 4)), np.ones((2, 3)), np.ones((5, 3)))),
        ("rope", (np.ones((1, 2, 3, 4)), *[np.ones((1, 1, 3, 2), np.float32)] * 2)),
        ("rope_vjp", (ONES, np.ones((1, 2, 3, 4)), *[np.ones((1, 1, 3, 2))] * 2)),
        ("cross_entropy", (np.ones((2, 4)), np.array([-100, -100]))),
        ("cross_entropy_vjp", (np.ones(2), np.ones((2, 4)), np.array([0, 1]))),
        ("cross_entropy_vjp", (np.ones(()), SINGLE, np.array([0, 1]))),
    ],
)
def test_unsupported_arguments_are_left_to_the_layer(name: str, args: tuple[Any, ...]) -> None:
    assert KERNELS[name](*args, **({"act": "gelu"} if name == "swiglu_vjp" else {})) is NotImplemented


def test_a_bias_that_hides_a_key_by_its_size_is_served() -> None:
    q, bias = normal(0, 1, 2, 3, 5).astype(np.float32), np.zeros((3, 3), np.float32)
    bias[:, 0] = -1e38
    args = (*[q] * 5, np.float32(0.5), None, bias)
    np.testing.assert_allclose(KERNELS["diff_attention"](*args), layers.diff_attention(*args), rtol=1e-5, atol=1e-6)


def from_saved(q: Any) -> Any:
    _, lse = FAST.diff_attention_with_lse(*[q] * 5, np.float32(0.5))
    assert lse.shape == (2, 2, 1, 2, q.shape[2], 1)
    return FAST.diff_attention_vjp(*[q] * 6, np.float32(0.5), lse=lse)


@pytest.mark.parametrize(
    "call",
    [
        lambda q: FAST.diff_attention(*[q] * 5, np.float32(0.5)),
        lambda q: FAST.diff_attention_vjp(*[q] * 6, np.float32(0.5)),
        from_saved,
        lambda q: FAST.plain_heads(q, q, q),
        lambda q: FAST.plain_heads_vjp(np.ones((1, q.shape[2], 16), np.float32), q, q, q),
    ],
    ids=["diff_attention", "diff_attention_vjp", "diff_attention_vjp, lse", "plain_heads", "plain_heads_vjp"],
)
def test_attention_memory_grows_with_length_not_its_square(call: Callable[[Any], Any]) -> None:
    peaks = []
    for T in (512, 1024, 2048):
        q = np.ones((1, 2, T, 8), np.float32)
        tracemalloc.start()
        result = call(q)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result is not NotImplemented
    assert peaks[2] < 2.2 * peaks[1] < 5 * peaks[0]


def saved_cases() -> Iterator[Case]:
    """(g, q1, k1, q2, k2, v, λ): several blocks and groups, and masks of every shape."""
    for sizes, scale in (((2, 4, 2, 131, 140), 1.0), ((1, 2, 2, 300, 300), 30.0)):
        B, H, _, T, S = sizes
        *maps, v, one = streams(*sizes, 8, 6, scale)
        yield (normal(8, B, H, T, 6), *maps, v, one), {}
        for see in seen(9, B, H, T, S, 2):
            yield (normal(8, B, H, T, 6), *maps, v, np.abs(normal(7, B, H, T, 1))), see


def log_sum_exps(q: Any, k: Any, causal: bool, mask: Any, bias: Any) -> np.ndarray:
    z = q @ np.repeat(k, q.shape[1] // k.shape[1], axis=1).swapaxes(2, 3) / np.sqrt(q.shape[3])
    T, S = z.shape[2:]
    sight = np.tri(T, S, S - T, dtype=bool) if causal else np.ones((T, S), bool)
    z = np.where(sight if mask is None else sight & mask, z if bias is None else z + bias, -np.inf)
    top = z.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(top == -np.inf, 0, top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True)))


@pytest.mark.parametrize("case", list(saved_cases()))
def test_log_sum_exps_are_saved_and_the_backward_pass_begins_from_them(case: Any) -> None:
    (g, *args), see = case
    H = g.shape[1]
    with FAST.inference_scope():
        heads, lse = FAST.diff_attention_with_lse(*args, **see)
        grads = FAST.diff_attention_vjp(g, *args, lse=lse, **see)
    np.testing.assert_allclose(heads, layers.diff_attention(*args, **see), rtol=1e-10, atol=1e-11)
    for i in (0, 1):
        mask, bias = (
            x[:, i * H : i * H + H] if x is not None and x.ndim == 4 and x.shape[1] == 2 * H else x
            for x in (see.get("mask"), see.get("bias"))
        )
        exact = log_sum_exps(*args[2 * i : 2 * i + 2], see.get("causal", True), mask, bias)
        np.testing.assert_allclose(lse[i, 0] + np.log(lse[i, 1]), exact, rtol=1e-12, atol=1e-12)
    truths = layers.diff_attention_vjp(g, *args, **see)
    for one, truth in zip(grads, truths, strict=True):
        assert one.shape == truth.shape
        np.testing.assert_allclose(one, truth, rtol=1e-10, atol=1e-11 * max(1, np.abs(truth).max()))
    for repeatable in (True, False):  # the saved ones are used where scores have the same bits again
        kernels = tune(NumpyKernels(3), repeatable_scores=repeatable)
        wrong = kernels.diff_attention_vjp(g, *args, lse=lse * 1.001, **see)
        assert (np.abs(wrong[4] - truths[4]).max() > 1e-4 * np.abs(truths[4]).max()) == repeatable
    # float32: no more than twice as far from the truth of its inputs as the layer itself
    g32, *args32 = (cast(a, np.float32) for a in (g, *args))
    see32 = cast(see, np.float32)
    ours = FAST.diff_attention_vjp(g32, *args32, lse=FAST.diff_attention_with_lse(*args32, **see32)[1], **see32)
    theirs = layers.diff_attention_vjp(g32, *args32, **see32)
    g64, *args64 = (cast(a, np.float64) for a in (g32, *args32))
    exacts = layers.diff_attention_vjp(g64, *args64, **cast(see32, np.float64))
    # of one λ for all rows also a rounding of its gradient, and one of its terms, g · (A₂ V), which cancel in their sum
    first, both = (layers.diff_attention(*args64[:5], np.asarray(x), **see) for x in (0.0, 1.0))
    terms = np.linalg.norm(g32 * (first - both)) + np.abs(exacts[5]).max() if args[5].size == 1 else 0.0
    for i, (mine, layer, exact) in enumerate(zip(ours, theirs, exacts, strict=True)):
        assert mine.dtype == np.float32
        allowed = 2 * np.sqrt(np.square(layer - exact).mean()) + (2**-23 * terms if i == 5 else 0.0)
        assert np.sqrt(np.square(mine - exact).mean()) <= allowed
