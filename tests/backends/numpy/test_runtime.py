"""Who owns the cores during a pass, the size of NumPy's buffer, and what the processor can do."""

from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from refdiff.backends.numpy.runtime import Runtime
from refdiff.backends.numpy.tuning import Tuning, has_avx512


@pytest.mark.parametrize("threads", [2, Tuning.python_threads, Tuning.python_threads + 1])
def test_one_token_reads_large_weights_with_the_threads_of_blas_where_these_are_many(threads: int) -> None:
    rt, many = Runtime(threads), threads > Tuning.python_threads
    large = np.zeros(Tuning.blas_weights, np.float32)
    for weight, for_blas in (
        (None, False),
        (large[1:], False),
        (large, many),
        (np.zeros(Tuning.blas_weights, np.float16), False),
    ):
        with rt.inference_scope(weight):
            blas = {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
        assert blas == {threads if for_blas else 1}


def test_a_pass_has_a_buffer_of_its_own_size_in_every_thread() -> None:
    rt, seen, before = Runtime(2), set[int](), np.getbufsize()
    with rt.inference_scope():
        rt.workers.map(lambda _: seen.add(np.getbufsize()), range(9))
        with rt.inference_scope(), np.errstate(over="ignore"):
            seen.add(np.getbufsize())
    assert seen == {Tuning.pass_buffer}
    assert np.getbufsize() == before != Tuning.pass_buffer


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512f avx512dq\n", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512dq\n", False),
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
    assert has_avx512.__wrapped__() is expected
