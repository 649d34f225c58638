"""The kernel's side, called here: what it takes, what it refuses, and what it answers."""

from __future__ import annotations

import ctypes
import io
import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.judge import child

KERNELS = Path(__file__).parent / "kernels"
SPEC, INPUTS, DOUT = object(), {"q": 1}, object()


@pytest.mark.parametrize(
    ("kernel", "gradients", "expected"),
    [
        (lambda spec, inputs: (spec, inputs), False, (SPEC, INPUTS)),
        (lambda inputs: (inputs,), False, (INPUTS,)),
        (lambda spec, inputs, dout=None: (spec, inputs, dout), True, (SPEC, INPUTS, DOUT)),
        (lambda inputs, *, dout=None: (inputs, dout), True, (INPUTS, DOUT)),
        (lambda spec, inputs=None: (spec, inputs), False, (SPEC, INPUTS)),
        (max, False, None),  # it does not tell what it takes
    ],
)
def test_what_a_kernel_is_called_with(kernel: Any, gradients: bool, expected: Any) -> None:
    call, found = child.adapted(kernel)
    assert found == gradients
    if expected is not None:
        assert call(SPEC, INPUTS, DOUT) == expected


@pytest.mark.parametrize(
    ("event", "args", "says"),
    [
        ("import", ("refdiff.layers", None, None, None, None), "refdiff cannot be imported"),
        ("import", ("refdifference", None, None, None, None), ""),
        ("open", ("hidden/truth.py", "r", os.O_RDONLY), "cannot be read"),
        ("open", (f"/proc/{os.getppid()}/environ", "r", os.O_RDONLY), "cannot be read"),
        ("open", ("/proc/self/status", "r", os.O_RDONLY), ""),
        ("open", ("elsewhere.txt", "w", os.O_WRONLY | os.O_CREAT), "cannot be written"),
        ("open", ("scratch/cache.bin", "w", os.O_WRONLY | os.O_CREAT), ""),
        ("open", (os.devnull, "w", os.O_WRONLY), ""),
        ("open", (3, "w", os.O_WRONLY), ""),
        ("os.rename", ("scratch/a", "elsewhere.txt", -1, -1), "cannot be changed"),
        ("os.rename", ("scratch/a", "scratch/b", -1, -1), ""),
        ("os.mkdir", (b"scratch/a", 511, -1), ""),
        ("os.kill", (1, 9), "may not call os.kill"),
        ("socket.connect", (None, None), "may not call socket.connect"),
        ("subprocess.Popen", ("cc", [], None, None), "may not call subprocess.Popen; --allow-processes lets it"),
        ("compile", (None, "x"), ""),
    ],
)
def test_what_is_refused(
    event: str, args: tuple[Any, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hook = child.guard((f"{tmp_path}/hidden/",), str(tmp_path / "scratch"), False)
    if says:
        with pytest.raises((ImportError, PermissionError), match=says):
            hook(event, args)
    else:
        hook(event, args)


def test_a_file_without_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "submission", None)
    with pytest.raises(child.UnusableError, match="the file has no function 'absent'"):
        child.load(str(KERNELS / "honest.py"), "absent")
    with pytest.raises(child.UnusableError, match="is no file of Python"):
        child.load(str(tmp_path / "kernel.txt"), "kernel")


class Libraries:
    """Arrays of other libraries, as far as they are asked."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.dtype, self.shape, self.settled = x, x.dtype, x.shape, False

    def block_until_ready(self) -> None:
        self.settled = True

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.x


def test_what_is_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert child.outputs((x, None)) == {"out": x}
    assert list(child.outputs({"out": x, "lambda_full": np.float32(1)})) == ["out", "lambda_full"]
    for wrong in ([x], (x, x), None, x.view(np.matrix), "text"):
        with pytest.raises(child.UnusableError, match="give an array of a library"):
            child.outputs(wrong)
    monkeypatch.setattr(Libraries, "__module__", "jaxlib._jax")
    monkeypatch.setitem(sys.modules, "jax", sys)
    jax = Libraries(x)
    assert child.outputs(jax) == {"out": jax}
    assert jax.settled
    assert child.bytes_of(jax) == ("float32", (2, 3), x.tobytes())


def test_bytes_and_what_is_left_of_them() -> None:
    x = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    assert child.bytes_of(x.T) == ("bfloat16", (3, 2), np.ascontiguousarray(x.T).tobytes())
    child.spoil(x)
    assert np.isnan(x.astype(np.float32)).all()
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    child.spoil(fixed)
    assert not fixed.any()


def test_the_place_of_an_array() -> None:
    """A view that runs backwards in every other row."""
    x = np.arange(24).reshape(6, 4).astype(ml_dtypes.bfloat16)
    place = child.place_of(x[::-2, 1:])
    assert place is not None
    address, strides = place
    assert strides == [-16, 2]
    assert ctypes.string_at(address + strides[0], 4) == x[3, 1:3].tobytes()
    assert child.place_of(Libraries(x)) is None


def test_requests_and_answers() -> None:
    """Two calls on the same memory, an error, a refusal, and what was kept sent, then shown."""
    arena = mmap.mmap(-1, 4096)
    x, dout = (np.full((2, 2), value, np.float32) for value in (3, 5))
    arena[:16], arena[64:80] = x.tobytes(), dout.tobytes()
    seen: list[Any] = []

    def kernel(spec: Any, inputs: dict[str, Any], dout: Any) -> Any:
        seen.append(inputs["q"])
        if spec.layer == 1:
            return NotImplemented
        if spec.layer == 2:
            raise ValueError("no such layer")
        if spec.layer == 3:
            return np.array([object()])
        return inputs["q"] * dout

    arrays = [["q", "float32", [2, 2], 0], ["dout", "float32", [2, 2], 64]]
    asked: list[dict[str, Any]] = (
        [{"do": "call", "n": n + 1, "arrays": arrays, "spec": {"layer": n}} for n in range(3)]
        + [{"do": "send", "n": n, "read": read} for n, read in ((1, False), (1, True), (9, True))]
        + [{"do": "drop", "n": 1}]
    )
    requests, pipe = io.BytesIO(b"\n".join(json.dumps(request).encode() for request in asked)), io.BytesIO()
    child.serve(kernel, requests, child.Answers(pipe), arena)
    data = pipe.getvalue()
    answers = []
    while data:
        size = int.from_bytes(data[:4], "little")
        answer, data = json.loads(data[4 : 4 + size]), data[4 + size :]
        if answer["status"] == "arrays":
            ((*what, place),) = answer["arrays"]
            assert what == ["out", "float32", [2, 2]]
            if not place:
                assert data[:16] == (x * dout).tobytes()
                data = data[16:]
        answers.append(answer["status"])
    assert answers == ["done", "declined", "raised", "arrays", "arrays", "raised"]
    assert seen[0] is seen[1] is seen[2]
