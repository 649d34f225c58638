"""refdiff and its oracle, as they are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from refdiff.arrays import namespace, to_numpy
from refdiff.backends import backend_for
from refdiff.bench.inputs import Bias, Ids
from refdiff.bench.machine import SIXTEEN_BITS
from refdiff.bench.side import LOOKED_UP, Answer, Arrivals, FloatArray, Side
from refdiff.generation.context import DecodingContext
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.weights.names import flatten, nest
from refdiff.training.adamw import AdamW


class RefdiffSide(Side):
    """A `DiffLlamaForCausalLM`, read by what its `generate` reads by."""

    model: DiffLlamaForCausalLM
    weights: ClassVar[str] = "expanded"
    sparing = True

    def open(self, folder: str) -> None:
        """Map the files; matrices of a 16-bit dtype stay so, and must be stored so."""
        s = self.settings
        self.model = DiffLlamaForCausalLM.from_pretrained(
            folder,
            dtype=s.dtype,
            backend=s.backend,
            threads=s.threads,
            local_files_only=True,
            weights="stored" if s.dtype in SIXTEEN_BITS else self.weights,
        )
        found = self.model.base_params["layers"][0]["self_attn"]["o_proj"]["weight"].dtype
        if s.dtype in SIXTEEN_BITS and found.name != s.dtype:
            raise ValueError(f"--dtype {s.dtype} measures matrices as they are stored, but here they are {found.name}")
        self.itemsize = found.itemsize
        self.vocab_size = self.model.config.vocab_size

    def start(self, ids: Ids, new: int) -> Ids:
        """Read a prompt into a cache with the capacity that `generate` gives it for the prompt and `new` tokens."""
        self._context, self._ids = DecodingContext(self.model, None, ids.shape[1] + new), ids
        return self._next()

    def step(self, tokens: Ids) -> Ids:
        """Read what `generate` would read next."""
        self._ids = np.concatenate([self._ids, tokens[:, None]], axis=1)
        return self._next()

    def _next(self) -> Ids:
        if self.gpu is None:
            return np.asarray(self._context.read(self._ids)[:, -1].argmax(axis=1))
        chosen: Ids = to_numpy(self.model.backend.kernels.choose(self._context.read_on_device(self._ids)))
        return chosen

    def rewind(self, length: int) -> None:
        """Crop the cache."""
        self._context.crop(length)
        self._ids = self._ids[:, :length]

    def by_lookup(self, ids: Ids, new: int, bias: Bias, streamer: Arrivals) -> Ids:
        """Call `generate`."""
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": False}
        made = self.model.generate(
            ids,
            streamer=streamer,
            max_new_tokens=new,
            prompt_lookup_num_tokens=LOOKED_UP,
            sequence_bias=bias,
            **options,
        )
        return np.asarray(made[:, ids.shape[1] :])

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
        s = self.settings
        model = DiffLlamaForCausalLM.from_pretrained(folder, dtype=s.dtype, backend=s.backend, threads=s.threads)
        params = {
            name: np.array(a, order="C") if isinstance(a, np.ndarray) else a
            for name, a in flatten(model.params).items()
        }
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


class OracleSide(Side):
    """The oracle, in processor time: it runs beside other work on many cores. Four heads share a pair of key heads."""

    clock = staticmethod(time.process_time)

    def check(self, size: int, batch: int) -> Answer:
        """Check the output of `size` queries and keys, which must pass."""
        return self._judged(size, batch, "halves", "check", "pass")

    def diagnose(self, size: int, batch: int) -> Answer:
        """Diagnose the output of heads that are neighbors, which must be found."""
        return self._judged(size, batch, "interleaved", "diagnose", "unique")

    def _judged(self, size: int, heads: int, pairing: str, judge: str, status: str) -> Answer:
        from refdiff import oracle  # not in processes whose memory a model is measured by

        pairs = {"query_heads": 2 * heads, "key_heads": 2 * max(1, heads // 4)}
        spec = oracle.Spec.preset("hf_diffllama", head_dim=64, layer=5, **pairs)
        (case,) = oracle.cases("natural", spec=spec, dtype="bfloat16", batch=1, queries=size, keys=size)
        truth = oracle.truth(spec.replace(pairing=pairing), case.inputs, want=("out",)).out
        output = np.asarray(truth, dtype=np.float32)
        seconds, found = self.timed(lambda: getattr(oracle, judge)(output, spec, case.inputs, recipe="bfloat16"))
        if found.status != status:
            raise ValueError(f"the oracle: got {found.status}, expected {status}\n{found}")
        return {"seconds": seconds, **self.peak()}
