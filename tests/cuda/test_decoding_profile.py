"""The calls of a decoded token, counted in what torch's profiler writes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.cuda import decoding_profile
from tests.cuda.decoding_profile import LAYERS, counts, told


def trace(**calls: int) -> dict[str, Any]:
    """What the profiler writes of so many calls, each kernel being one on the device, and of what is none."""
    categories = {"cuLaunchKernel": "cuda_driver", "kernel": "kernel", "Memcpy DtoH": "gpu_memcpy"}
    events = [
        {"ph": "X", "cat": categories.get(name, "cuda_runtime"), "name": f"rms_norm_{i}" if name == "kernel" else name}
        for name, number in calls.items()
        for i in range(number)
    ]
    return {"traceEvents": [*events, {"ph": "M", "name": "process_name"}, {"cat": "cpu_op", "name": "cudaMemcpyAsync"}]}


def test_a_token_has_what_the_longer_text_has_more() -> None:
    once = {"cudaStreamBeginCapture": 1, "cuLaunchKernel": 300}
    short = counts(trace(**once, cudaGraphLaunch=10, kernel=900, cudaStreamSynchronize=12))
    long = counts(trace(**once, cudaGraphLaunch=20, kernel=1500, cudaStreamSynchronize=32))
    lines, well = told(short, long, 10)
    assert well
    assert [line.split(maxsplit=1) for line in lines[:-1]] == [
        ["1.00", "cudaGraphLaunch"], ["2.00", "cudaStreamSynchronize"], ["60.00", "kernels on the device"]
    ]  # fmt: skip
    assert lines[-1].split(maxsplit=1)[0] == "2.00"
    assert lines[-1].endswith("less than one a layer")


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaEventSynchronize"])
def test_a_wait_in_each_layer_is_found(call: str) -> None:
    short, long = ({**counts(trace(kernel=9)), call: n} for n in (0, 4 * LAYERS))
    assert told(Counter(short), Counter(long), 4) == (
        [
            f"{LAYERS:8.2f}  {call}",
            f"{LAYERS:8.2f}  in which the host may wait, in {LAYERS} layers: there may be one a layer",
        ],
        False,
    )


def test_a_profiler_that_hears_nothing_is_not_taken_for_a_device_that_does_nothing() -> None:
    lines, well = told(Counter(), Counter(cudaGraphLaunch=3), 3)
    assert not well
    assert "no kernel" in lines[0]


def test_its_model_generates() -> None:
    model = decoding_profile.model("numpy", "float16")
    assert model.params["model"]["layers"][0]["mlp"]["up_proj"]["weight"].dtype == "float16"
    assert decoding_profile.generated(model, 3).shape == (1, 11)
    assert model.config.max_position_embeddings >= decoding_profile.LONG + 8
