"""The next token of each sequence, chosen on the device from its logits: the arguments of choose.cu."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, from_numpy, to_numpy
from refdiff.backends.cupy.device import NUMBERS, Runtime
from refdiff.backends.cupy.geometry import row_threads


def choose(
    rt: Runtime,
    logits: Array,
    uniforms: Array | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Any:
    """Choose the most likely token of each row, or with a number of `uniforms` for each row one drawn by it.

    Shapes:
        logits (B, V), uniforms (B,) float64 in [0, 1), or None -> (B,) int64, −1 for a row with NaN, with nothing but
        −inf, with an infinity to draw by, or with weights that overflow; NotImplemented for logits of other types.
    """
    B, V = logits.shape
    if logits.dtype.name not in NUMBERS or V == 0:
        return NotImplemented
    if V > 1 and logits.strides[1] != logits.itemsize:
        logits = logits.copy(order="C")
    tokens, threads = rt.device.empty((B,), np.int64), row_threads(V)
    rt.device.launch(
        "choose.cu", "choose", {"NUMBER": NUMBERS[logits.dtype.name]}, (B, 1, 1), threads,
        (logits, uniforms, tokens, np.int64(logits.strides[0] // logits.itemsize), np.int32(V), np.float64(temperature),
         np.int32(top_k), np.float64(top_p), np.float64(min_p)),
        24 * threads,
    )  # fmt: skip
    return tokens


class DeviceSampler:
    """Greedy or sampled tokens by the kernel `choose` of a model's backend.

    The draws are those of the host, from the same numbers; only where rounding decides may a token differ.
    """

    def __init__(self, model: Any, options: Any, processors: Any) -> None:
        self._model = model
        self._processors = processors
        self._sampling = options.do_sample
        self._warpers: dict[str, Any] = {}
        if options.do_sample:
            given = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p,
                     "min_p": options.min_p}  # fmt: skip
            self._warpers = {name: value for name, value in given.items() if value is not None}

    @classmethod
    def create(cls, model: Any, options: Any, processors: Any) -> DeviceSampler | None:
        """Return the choice for a call of `generate`, or None where the host must see the logits."""
        o = options
        rare = (
            o.top_h is not None
            or (o.typical_p or 1.0) < 1.0
            or (o.epsilon_cutoff or 0.0) > 0.0
            or (o.eta_cutoff or 0.0) > 0.0
        )
        if processors.has_processors or o.num_return_sequences > 1:
            return None
        if o.output_scores or o.output_logits or (o.do_sample and rare):
            return None
        if model.base_params["norm"]["weight"].dtype.name == "float64":  # and so are the logits, which it does not take
            return None
        return cls(model, options, processors)

    def __call__(
        self, logits: Array, ids: NDArray[np.int64], active: NDArray[np.bool_], streams: list[Any]
    ) -> NDArray[np.int64]:
        """Choose for (B, V) logits on the device; rows that do not grow get any token.

        Raises:
            ValueError: scores that no token can be chosen by, as on the host.
        """
        uniforms = None
        if self._sampling:
            drawn = np.array([stream.next() if row else 0.0 for stream, row in zip(streams, active, strict=True)])
            uniforms = from_numpy(drawn, self._model.xp, self._model.device)
        tokens = to_numpy(self._model.backend.kernels.choose(logits, uniforms, **self._warpers))
        if (tokens[active] < 0).any():
            self._processors.check(to_numpy(logits), ids, active)
        return np.where(active, tokens, 0)
