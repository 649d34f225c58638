"""The side that runs refdiff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from refdiff.arrays import namespace
from refdiff.backends import backend_for
from refdiff.bench.inputs import Ids
from refdiff.bench.side import SIXTEEN_BITS, FloatArray, Side
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.weights.names import flatten, nest
from refdiff.training.adamw import AdamW


class RefdiffSide(Side):
    """`DiffLlamaForCausalLM`, with its default weights."""

    model: DiffLlamaForCausalLM
    weights: ClassVar[str] = "expanded"
    last_token_only = True

    def command(self, prompt: str) -> list[str]:
        s = self.settings
        flags = {"--threads": s.threads, "--dtype": s.dtype, "--backend": s.backend, "--weights": self._weights_flag()}
        options = {"-m": self.folder, "-p": prompt, "-n": 1, "--temp": 0, **flags}
        return ["-m", "refdiff", "generate", "-q", "--offline", *(str(x) for pair in options.items() for x in pair)]

    def _weights_flag(self) -> str:
        return "stored" if self.settings.dtype in SIXTEEN_BITS else self.weights

    def _load(self, folder: str, **options: Any) -> DiffLlamaForCausalLM:
        s = self.settings
        return DiffLlamaForCausalLM.from_pretrained(
            folder, dtype=s.dtype, backend=s.backend, threads=s.threads, local_files_only=True, **options
        )

    def open(self, folder: str) -> None:
        """Memory-map the checkpoint. With a 16-bit dtype, its matrices must have it and are not converted.

        Raises:
            ValueError: the matrices have another dtype.
        """
        self.model = self._load(folder, weights=self._weights_flag())
        matrix, expected = self.model.base_params["layers"][0]["self_attn"]["o_proj"]["weight"], self.settings.dtype
        if expected in SIXTEEN_BITS and matrix.dtype.name != expected:
            raise ValueError(f"--dtype {expected}: got matrices in {matrix.dtype.name}, expected {expected}")
        self.itemsize = matrix.dtype.itemsize

    def generate(self, ids: Ids, streamer: Any, **options: Any) -> Ids:
        options |= {"eos_token_id": None, "return_dict_in_generate": False}
        return np.asarray(self.model.generate(ids, streamer=streamer, **options))[:, ids.shape[1] :]

    def bind_weights(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        """Return a function that calls `linear` as a model does. For one token, `inference_scope` gets a weight."""
        backend = backend_for(namespace(weights[0]), threads=self.settings.threads)

        def multiply() -> Any:
            with backend.inference_scope(weights[0] if len(x) == 1 else None):
                for weight in weights:
                    result = backend.ops.linear(x, weight)
            return result

        return multiply

    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        """Return a step as in `refdiff train`: loss and gradients, then AdamW."""
        model = self._load(folder)
        loaded = flatten(model.params)
        params = {n: np.array(a, order="C") if isinstance(a, np.ndarray) else a for n, a in loaded.items()}
        model.params = nest(params)
        optimizer = AdamW(params)
        self.scope = model.backend.repeated_scope()
        self.scope.__enter__()  # open until the process ends

        def step() -> float:
            loss, grads = model.loss_and_grad(ids, labels=ids)
            with model.backend.inference_scope():
                optimizer.step(flatten(grads), 1e-3, each=model.backend.map)
            return float(loss)

        return step


class StoredSide(RefdiffSide):
    """refdiff with --weights stored: 16-bit weights stay in 16 bits."""

    weights = "stored"
