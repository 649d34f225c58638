"""The size of NumPy's buffer during a pass, and what the processor can do."""

from typing import Any

import numpy as np
import pytest

from refdiff.backends.numpy.runtime import Runtime
from refdiff.backends.numpy.tuning import Tuning, has_avx512


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
