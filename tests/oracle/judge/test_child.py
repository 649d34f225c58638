"""The kernel's side of the judge, called here: what it answers to requests."""

from __future__ import annotations

import io
import json
import mmap
from typing import Any

import numpy as np

from refdiff.oracle.judge import child


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
