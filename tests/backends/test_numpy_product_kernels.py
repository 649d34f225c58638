"""What products promise beyond their layer's numbers, which test_numpy_kernels.py holds them to."""

from typing import Any

import numpy as np
import pytest

from refdiff.backends import numpy_product_kernels
from refdiff.backends.numpy_pieces import has_unpacked_products
from refdiff.backends.numpy_product_kernels import FEW
from refdiff.backends.numpy_vjp_kernels import NumpyVjpKernels
from refdiff.backends.workers import Workers
from tests.backends.vjp_cases import normal

FAST = NumpyVjpKernels(Workers(3))


@pytest.mark.parametrize(("outputs", "terms"), [(1031, 2048), (4100, 512), (519, 8192), (3, 2**18)])
def test_one_token_gives_the_same_bits_whichever_threads_take_its_rows(outputs: int, terms: int) -> None:
    x, weight = normal(0, 1, terms).astype(np.float32), normal(1, outputs, terms).astype(np.float32)
    results = []
    for threads in (1, 2, 3):
        kernels = NumpyVjpKernels(Workers(threads))
        with kernels.running():
            results += [kernels.linear(x, weight), *kernels.linears(x, {"weight": weight}, {"weight": weight})]
    for one in results[1:]:
        np.testing.assert_array_equal(one, results[0])


def test_one_token_is_multiplied_without_the_interpreter_in_hand(monkeypatch: Any) -> None:
    """Of 500 results or fewer NumPy keeps it, and threads would take turns."""
    sizes, whole = [], np.vecdot
    monkeypatch.setattr(np, "vecdot", lambda a, b, out: (sizes.append(out.size), whole(a, b, out=out))[1])
    with FAST.running():
        FAST.linear(normal(0, 1, 4096), normal(1, 1536, 4096))
    assert sizes == [512, 512, 512]


@pytest.mark.parametrize("unpacked", [0, 24])
def test_products_with_few_tokens_are_the_same_in_either_kind_of_piece(unpacked: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(NumpyVjpKernels, "unpacked", unpacked)
    for rows in (2, 3, 4, 5, 7, 8, 15, 24, 25):
        for outputs, terms in ((1031, 2048), (300, 5003), (7, 70_000)):
            x, weight = normal(rows, rows, terms), normal(1, outputs, terms)
            for given in (x, np.asfortranarray(x)):
                for w in (weight, np.asfortranarray(weight)):
                    np.testing.assert_allclose(FAST.linear(given, w), x @ weight.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stored", [None, np.float16, np.uint16])
@pytest.mark.parametrize("rows", [1, 2, 8, 25, 130])
def test_several_products_at_once_are_those_one_by_one(rows: int, stored: Any) -> None:
    x = normal(0, 2, rows, 1024).astype(np.float32)[:1]
    projections: list[dict[str, Any]] = []
    for seed, outputs in enumerate((1031, 300, 7)):  # what threads share, and what is too small for it
        weight = normal(seed, outputs, 1024, scale=0.02).astype(np.float32)
        if stored is not None:
            weight = (weight.view(np.uint32) >> 16).astype(np.uint16) if stored is np.uint16 else weight.astype(stored)
        projections.append({"weight": weight})
    projections[1]["bias"] = normal(9, 300).astype(np.float32)
    alone = [FAST.linear(x, **p) for p in projections]
    with FAST.running():
        together = FAST.linears(x, *projections)
    for one, other in zip(alone, together, strict=True):
        assert other.shape == one.shape
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-5)
    assert np.abs(alone[0]).max() > 0.1
    assert FAST.linears(x, projections[0], {"weight": normal(0, 7, 1023)}) is NotImplemented


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 10, 17, 24, 25])
@pytest.mark.parametrize("kind", ["float32", "float16", "words", "turned", "one turned", "small"])
def test_what_is_gated_at_once_is_what_the_products_and_silu_give(rows: int, kind: str, monkeypatch: Any) -> None:
    """And every product is computed once."""
    monkeypatch.setattr(NumpyVjpKernels, "unpacked", 24)
    inner = 40 if kind == "small" else 1100
    x = normal(0, 1, rows, 1024).astype(np.float32)
    gate, up = (normal(i, inner, 1024, scale=0.05).astype(np.float32) for i in (1, 2))
    if kind == "float16":
        gate, up = gate.astype(np.float16), up.astype(np.float16)
    elif kind == "words":
        gate, up = ((w.view(np.uint32) >> 16).astype(np.uint16) for w in (gate, up))
    elif "turned" in kind:
        gate, up = np.asfortranarray(gate), up if kind == "one turned" else np.asfortranarray(up)
    given = {"weight": gate}, {"weight": up}
    alone = [FAST.linear(x, **p) for p in given]
    products, whole = [], np.matmul
    with FAST.running():
        found = FAST._gated_linears(x, *given)
        if kind == "turned":
            monkeypatch.setattr(
                numpy_product_kernels, "_as_the_layer", lambda *a: (products.append(a), whole(a[0], a[1].T))[1]
            )
            FAST._gated_linears(x, *given)
            assert len(products) == (2 if 1 < rows <= FEW else 0)
    if rows > FEW:
        assert found is NotImplemented
        return
    np.testing.assert_allclose(found, alone[0] / (1 + np.exp(-alone[0])) * alone[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512f avx512dq\n", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512dq\n", False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t\t: fpu avx512f\n", True),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nflags\t\t: fpu avx2\n", False),
        ("CPU implementer\t: 0x41\n", False),
        (None, False),
    ],
)
def test_the_processor_says_what_it_is(said: str | None, expected: bool, monkeypatch: Any) -> None:
    def read(path: Any) -> str:
        if said is None:
            raise FileNotFoundError(path)
        return said

    monkeypatch.setattr("pathlib.Path.read_text", read)
    assert has_unpacked_products() is expected
