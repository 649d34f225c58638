"""The kernel's side of the judge, called here: what it refuses, and what it answers to requests."""

from __future__ import annotations

import io
import json
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.inputs import signature
from refdiff.oracle.submission import child

KERNELS = Path(__file__).parent / "kernels"


def test_imports_of_refdiff_are_refused() -> None:
    child.refuse_refdiff("import", ("refdifference", None, None, None, None))
    child.refuse_refdiff("os.fork", ())
    with pytest.raises(ImportError, match="refdiff cannot be imported"):
        child.refuse_refdiff("import", ("refdiff.layers", None, None, None, None))


def test_a_file_without_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "submission", None)
    config = {"signature": signature.__file__, "kernel": str(KERNELS / "honest.py"), "function": "absent"}
    with pytest.raises(child.UnusableError, match="the file has no function 'absent'"):
        child.load(config)
    with pytest.raises(child.UnusableError, match=r"must end in \.py, \.so or \.dylib"):
        child.load({**config, "kernel": str(tmp_path / "kernel.txt")})


def test_valid_and_invalid_outputs() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert child.outputs((x, None)) == {"out": x}
    assert list(child.outputs({"out": x, "lambda_full": np.float32(1)})) == ["out", "lambda_full"]
    for wrong in ([x], (x, x), None, x.view(np.matrix), "text"):
        with pytest.raises(child.UnusableError, match="return an array of NumPy"):
            child.outputs(wrong)


def test_requests_and_answers() -> None:
    """Two calls on the same memory, a refusal, errors, and what was returned first sent again, then overwritten."""
    arena = mmap.mmap(-1, 4096)
    x, dout = (np.full((2, 2), value, np.float32) for value in (3, 5))
    arena[:16], arena[64:80] = x.tobytes(), dout.tobytes()
    seen: list[Any] = []
    specs: set[Any] = set()
    returned: list[Any] = []

    def kernel(spec: Any, inputs: dict[str, Any], dout: Any) -> Any:
        seen.append(inputs["q"])
        specs.add(spec)  # JAX looks a static argument up by its hash
        if spec.layer == 1:
            return NotImplemented
        if spec.layer == 2:
            raise ValueError("no such layer")
        if spec.layer == 3:
            return np.array([object()])
        if spec.layer == 4:
            return inputs["q"].T
        returned.append(inputs["q"] * dout)
        return returned[-1]

    arrays = [["q", "float32", [2, 2], 0], ["dout", "float32", [2, 2], 64]]
    calls = [{"do": "call", "first": n == 5, "arrays": arrays, "spec": {"layer": n}} for n in range(6)]
    asked: list[dict[str, Any]] = [*calls[:5], {"do": "again"}, calls[5]]
    requests, pipe = io.BytesIO(b"\n".join(json.dumps(request).encode() for request in asked)), io.BytesIO()
    child.serve(kernel, requests, pipe, arena)
    data = pipe.getvalue()
    answers = []
    while data:
        size = int.from_bytes(data[:4], "little")
        answer, data = json.loads(data[4 : 4 + size]), data[4 + size :]
        if answer["status"] == "arrays":
            assert answer["arrays"] == [["out", "float32", [2, 2]]]
            assert data[:16] == (x * dout).tobytes()
            data = data[16:]
        answers.append(answer.get("text", answer["status"]).partition(":")[0])
    wrong = [
        "the kernel raised ValueError",
        "the kernel returned out of type object",
        "out is in the memory of the inputs",
    ]
    assert answers == ["arrays", "declined", *wrong, "arrays", "arrays"]
    assert np.isnan(returned[0]).all()
    assert (returned[1] == x * dout).all()
    assert all(q is seen[0] for q in seen)
    assert len(specs) == 6
    assert child.Fields(layer=2, rope_parameters={"factor": 4}) == child.Fields(rope_parameters={"factor": 4}, layer=2)
    assert child.Fields(layer=0) in specs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_of_torch_are_read_where_they_are(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(6, dtype=getattr(torch, dtype), requires_grad=True)
    found = child.on_host(x.reshape(2, 3).T)
    assert (found.dtype.name, found.astype(float).tolist()) == (dtype, [[0, 3], [1, 4], [2, 5]])
    child.overwrite(x)
    assert np.isnan(found.astype(float)).all()
