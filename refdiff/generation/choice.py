"""One token a row where the logits are, so that a step of decoding brings back its ids and no logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Array, from_numpy, to_numpy
from refdiff.generation.options import Options
from refdiff.generation.pipeline import Pipeline
from refdiff.generation.sampling import Uniforms


class ChoiceOnDevice:
    """Greedy or sampled tokens by the kernel `choose` of a model's backend.

    The draws are those of the host, from the same numbers; only where rounding decides may a token differ.
    """

    def __init__(self, model: Any, options: Options, pipeline: Pipeline) -> None:
        self._model = model
        self._pipeline = pipeline
        self._sampling = options.do_sample
        self._warpers: dict[str, Any] = {}
        if options.do_sample:
            given = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p,
                     "min_p": options.min_p}  # fmt: skip
            self._warpers = {name: value for name, value in given.items() if value is not None}

    @classmethod
    def of(cls, model: Any, options: Options, pipeline: Pipeline) -> ChoiceOnDevice | None:
        """Return the choice for a call of `generate`, or None where the host must see the logits."""
        o = options
        kernels = getattr(model, "kernels", None)
        rare = (o.typical_p or 1.0) < 1.0 or (o.epsilon_cutoff or 0.0) > 0.0 or (o.eta_cutoff or 0.0) > 0.0
        if not hasattr(kernels, "choose") or pipeline.has_processors or o.num_return_sequences > 1:
            return None
        if o.output_scores or o.output_logits or (o.do_sample and rare):
            return None
        if model.base_params["norm"]["weight"].dtype.name == "float64":  # and so are the logits, which it does not take
            return None
        return cls(model, options, pipeline)

    def __call__(
        self, logits: Array, ids: NDArray[np.int64], growing: NDArray[np.bool_], streams: list[Uniforms]
    ) -> NDArray[np.int64]:
        """Choose for (B, V) logits on the device; rows that do not grow get any token.

        Raises:
            ValueError: scores that no token can be chosen by, as on the host.
        """
        uniforms = None
        if self._sampling:
            drawn = np.array([stream.next() if row else 0.0 for stream, row in zip(streams, growing, strict=True)])
            uniforms = from_numpy(drawn, self._model.xp, self._model.device)
        tokens = to_numpy(self._model.kernels.choose(logits, uniforms, **self._warpers))
        if (tokens[growing] < 0).any():
            self._pipeline.check(to_numpy(logits), ids, growing)
        return np.where(growing, tokens, 0)
