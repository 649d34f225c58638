"""The size of NumPy's buffer during a pass, and what the processor can do."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

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
    ("core", "flags", "expected"),
    [
        ("SkylakeX", "flags\t\t: fpu avx2\n", True),
        ("Haswell", "flags\t\t: fpu avx2 avx512f\n", False),
        (None, "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512f avx512dq\n", True),
        (None, "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512dq\n", False),
        (None, "CPU implementer\t: 0x41\n", False),
        (None, None, False),
    ],
)
def test_avx512_is_what_blas_uses(core: str | None, flags: str | None, expected: bool, monkeypatch: Any) -> None:
    def read(path: Any) -> str:
        if flags is None:
            raise FileNotFoundError(path)
        return flags

    libraries = [{"internal_api": "openmp"}, {"internal_api": "openblas", "architecture": core}]
    monkeypatch.setattr("refdiff.backends.numpy.tuning.threadpool_info", lambda: libraries[: 1 + (core is not None)])
    monkeypatch.setattr("pathlib.Path.read_text", read)
    assert has_avx512.__wrapped__() is expected


@pytest.mark.skipif(all(x["internal_api"] != "openblas" for x in threadpool_info()), reason="NumPy has another BLAS")
def test_openblas_is_asked_which_kernels_it_takes() -> None:
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Prescott"}
    code = "import numpy; from refdiff.backends.numpy.tuning import has_avx512; print(has_avx512())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"False\n"
