"""refdiff as it is measured."""

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
    """A `DiffLlamaForCausalLM`, read by what its `generate` reads by."""

    model: DiffLlamaForCausalLM
    weights: ClassVar[str] = "expanded"
    sparing = True

    def command(self, prompt: str) -> list[str]:
        s = self.settings
        how = {"--threads": s.threads, "--dtype": s.dtype, "--backend": s.backend, "--weights": self._kept()}
        options = {"-m": self.folder, "-p": prompt, "-n": 1, "--temp": 0, **how}
        return ["-m", "refdiff", "generate", "-q", "--offline", *(str(x) for pair in options.items() for x in pair)]

    def _kept(self) -> str:
        return "stored" if self.settings.dtype in SIXTEEN_BITS else self.weights

    def _loaded(self, folder: str, **options: Any) -> DiffLlamaForCausalLM:
        s = self.settings
        return DiffLlamaForCausalLM.from_pretrained(
            folder, dtype=s.dtype, backend=s.backend, threads=s.threads, local_files_only=True, **options
        )

    def open(self, folder: str) -> None:
        """Map the files; matrices of a 16-bit dtype stay so, and must be stored so."""
        s, self.model = self.settings, self._loaded(folder, weights=self._kept())
        found = self.model.base_params["layers"][0]["self_attn"]["o_proj"]["weight"].dtype
        if s.dtype in SIXTEEN_BITS and found.name != s.dtype:
            raise ValueError(f"--dtype {s.dtype} measures matrices as they are stored, but here they are {found.name}")
        self.itemsize = found.itemsize

    def generate(self, ids: Ids, streamer: Any, **options: Any) -> Ids:
        made = self.model.generate(ids, streamer=streamer, eos_token_id=None, return_dict_in_generate=False, **options)
        return np.asarray(made)[:, ids.shape[1] :]

    def hold(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        """Call `linear` as a model does in a pass, which says whether it is one of one token by a weight of its own."""
        backend = backend_for(namespace(weights[0]), threads=self.settings.threads)

        def multiply() -> Any:
            with backend.inference_scope(weights[0] if len(x) == 1 else None):
                for weight in weights:
                    result = backend.ops.linear(x, weight)
            return result

        return multiply

    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        """Make a step of what `refdiff train` does: loss and gradients, then AdamW."""
        model = self._loaded(folder)
        held = flatten(model.params)
        params = {n: np.array(a, order="C") if isinstance(a, np.ndarray) else a for n, a in held.items()}
        model.params = nest(params)
        optimizer = AdamW(params)
        self.kept = model.backend.repeated_scope()
        self.kept.__enter__()  # as long as there are steps

        def one_step() -> float:
            loss, grads = model.loss_and_grad(ids, labels=ids)
            with model.backend.inference_scope():
                optimizer.step(flatten(grads), 1e-3, each=model.backend.map)
            return float(loss)

        return one_step


class StoredSide(RefdiffSide):
    """The same, its weights of 16 bits kept as the file has them."""

    weights = "stored"
