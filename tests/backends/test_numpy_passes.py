"""A pass takes cores from BLAS or leaves them to it, has its own size of NumPy's buffer, and says what goes apart."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from refdiff.backends.numpy_passes import BUFFERED, FEW_THREADS, LARGE, NumpyPasses, rows_at_a_time
from refdiff.backends.workers import Workers
from tests.model.models import small_model


@pytest.mark.parametrize("threads", [2, FEW_THREADS, FEW_THREADS + 1])
def test_one_token_reads_large_weights_with_the_threads_of_blas_where_these_are_many(threads: int) -> None:
    kernels, many = NumpyPasses(Workers(threads)), threads > FEW_THREADS
    large = np.zeros(LARGE, np.float32)
    for weight, for_blas in ((None, False), (large[1:], False), (large, many), (np.zeros(LARGE, np.float16), False)):
        with kernels.running(weight):
            blas = {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
        assert blas == {threads if for_blas else 1}


def test_the_model_says_when_a_pass_is_of_one_token() -> None:
    model, said = small_model(), []
    whole = model.kernels.running
    model.kernels.running = lambda weight: (said.append(weight), whole(weight))[1]
    for ids in ([[3]], [[3, 4]], [[3], [4]]):
        model(np.array(ids))
    assert [None if weight is None else weight.shape for weight in said] == [
        (model.config.intermediate_size, model.config.hidden_size),
        None,
        None,
    ]


def test_a_pass_has_a_buffer_of_its_own_size_in_every_thread() -> None:
    kernels, seen, before = NumpyPasses(Workers(2)), set[int](), np.getbufsize()
    with kernels.running():
        kernels.each(lambda _: seen.add(np.getbufsize()), range(9))
        with kernels.running(), np.errstate(over="ignore"):
            seen.add(np.getbufsize())
    assert seen == {BUFFERED}
    assert np.getbufsize() == before != BUFFERED


def test_a_pass_leaves_errors_as_the_caller_has_them() -> None:
    with np.errstate(over="raise"), NumpyPasses().running():
        assert np.geterr()["over"] == "raise"


def test_rows_that_go_apart_are_in_as_many_parts_as_they_need() -> None:
    assert rows_at_a_time(1, 100_000) == [slice(0, 1)]
    assert rows_at_a_time(16, 128) == [slice(0, 16)]
    assert rows_at_a_time(16, 256) == [slice(0, 8), slice(8, 16)]
    assert rows_at_a_time(3, 4096) == [slice(0, 1), slice(1, 2), slice(2, 3)]
