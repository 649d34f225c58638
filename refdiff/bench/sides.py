"""The sides of the benchmark: refdiff, other libraries, and the limits of the machine.

Each runs in a process of its own, which imports no other side's packages: they would count as its memory and its start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from refdiff import arrays
from refdiff.bench.inputs import Ids
from refdiff.browser import require
from refdiff.memory import peak_memory


class Row(Protocol):
    """What a side reads of a row, whose file imports this one."""

    @property
    def kind(self) -> Any: ...


SIXTEEN_BITS = ("float16", "bfloat16")
"""Types of matrices on a device. Activations stay in float32."""

WORKING_SET = 2**30
"""Bytes that the ceilings read: far more than caches hold."""

DEVICE_REPEATS = 30
"""Number of runs on a device, of which the fastest counts, since a device takes a while to reach its full clock."""

Measurement = dict[str, Any]

READY: Measurement = {}
"""The answer of a side that is ready to measure."""


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark, the same for all sides.

    folder: the checkpoint; None if no row needs one.
    backend: refdiff's backend.
    against: the sides beside refdiff.
    pairs: number of rounds.
    steps: tokens decoded per measurement.
    lookup_tokens: tokens generated with prompt lookup after the first.
    min_seconds: how long the ceilings are repeated.
    pause: seconds before each measurement, until the threads of the previous side have fallen asleep.
    batch, context: number of sequences and of tokens in a training step.
    """

    folder: str | None = None
    threads: int = 1
    dtype: str = "float32"
    backend: str = "numpy"
    against: tuple[str, ...] = ()
    pairs: int = 5
    steps: int = 16
    lookup_tokens: int = 128
    min_seconds: float = 0.3
    pause: float = 0.3
    batch: int = 16
    context: int = 256


class Side:
    """A library to measure."""

    command: Callable[[str], list[str]]  # arguments for Python to print the first token after a prompt
    open: Callable[[str], None]  # open the checkpoint in this folder, and set `itemsize`
    generate: Callable[..., Ids]  # (ids (B, T), streamer, max_new_tokens=N, …) → the new tokens (B, N)
    trainer: Callable[[str, Ids], Callable[[], float]]  # → one step on (B, T), returns the loss before it

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    peak: Callable[[], int | None] = staticmethod(peak_memory)  # peak bytes of this process or device
    wait: Callable[[], None] = staticmethod(lambda: None)  # wait for the device to finish
    itemsize: int  # bytes per number of the matrices in memory
    last_token_only: ClassVar[bool] = False  # whether the last layer skips all but a prompt's last token

    def __init__(self, settings: BenchSettings) -> None:
        self.settings = settings
        self.folder = str(settings.folder)

    def prepare(self) -> None:
        """Import packages and find the device; raise `ImportError` if something is missing."""
        if self.settings.backend == "cupy":
            arrays.backend("cupy")
            import cupy

            self.use_device(lambda: cupy.cuda.get_current_stream().synchronize(), cupy.cuda.runtime.memGetInfo)

    def use_device(self, wait: Callable[[], None], memory: Callable[[], tuple[int, int]]) -> None:
        """Measure on a device, given functions that wait for it and that return its free and total memory.

        The memory pools of the libraries return nothing to the device, so the memory in use is also the peak.
        """
        free = memory()[0]
        self.wait, self.peak = wait, lambda: free - memory()[0]

    def measure(self, row: Row) -> Iterator[Measurement]:
        """Prepare to measure a row and yield `READY`; then yield one answer per measurement."""
        measurements: Iterator[Measurement] = row.kind.measure(self, row)
        return measurements

    def time_call(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Call `work`; return its seconds and its result."""
        self.wait()
        started = self.clock()
        result = work()
        self.wait()
        return self.clock() - started, result


class RefdiffSide(Side):
    """`DiffLlamaForCausalLM`, with its default weights."""

    weights: ClassVar[str] = "expanded"
    last_token_only = True

    def prepare(self) -> None:
        super().prepare()
        from refdiff.model.heads import DiffLlamaForCausalLM

        self._class = DiffLlamaForCausalLM

    def command(self, prompt: str) -> list[str]:
        s = self.settings
        flags = {"--threads": s.threads, "--dtype": s.dtype, "--backend": s.backend, "--weights": self._weights_flag()}
        options = {"-m": self.folder, "-p": prompt, "-n": 1, "--temp": 0, **flags}
        return ["-m", "refdiff", "generate", "-q", "--offline", *(str(x) for pair in options.items() for x in pair)]

    def _weights_flag(self) -> str:
        return "stored" if self.settings.dtype in SIXTEEN_BITS else self.weights

    def _load(self, folder: str, **options: Any) -> Any:
        s = self.settings
        return self._class.from_pretrained(
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

    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        """Return a step as in `refdiff train`: loss and gradients, then AdamW."""
        from refdiff.model.weights.names import flatten, nest
        from refdiff.training.adamw import AdamW

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


SCRIPT = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, dtype, device = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
inputs = tokenizer(prompt, return_tensors="pt").to(device)
tokens = model.generate(**inputs, do_sample=False, max_new_tokens=1)
print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True), flush=True)
"""
"""A script that prints the first token after a prompt, as a user would write it."""


class TransformersSide(Side):
    """`transformers.DiffLlamaForCausalLM`."""

    def prepare(self) -> None:
        torch, transformers = (require(name, "--against transformers") for name in ("torch", "transformers"))
        self._torch, self._device = torch, "cpu"
        if self.settings.backend == "cupy":
            if not torch.cuda.is_available():
                raise ImportError(
                    "--against transformers with --backend cupy needs a torch that sees the CUDA device: install one "
                    "built for its CUDA, from pytorch.org"
                )
            self._device = "cuda"
            self.use_device(torch.cuda.synchronize, torch.cuda.mem_get_info)
        torch.set_num_threads(self.settings.threads)
        transformers.logging.set_verbosity_error()
        self._class = transformers.DiffLlamaForCausalLM  # transformers imports it here, not while loading is timed

    def command(self, prompt: str) -> list[str]:
        return ["-c", SCRIPT, self.folder, prompt, self.settings.dtype, self._device]

    def open(self, folder: str) -> None:
        self._model: Any = self._load(folder).eval()
        self._model.generation_config.eos_token_id = None
        self.itemsize = int(self._model.dtype.itemsize)

    def _load(self, folder: str) -> Any:
        return self._class.from_pretrained(
            folder, dtype=getattr(self._torch, self.settings.dtype), attn_implementation="sdpa", local_files_only=True
        ).to(self._device)

    def generate(self, ids: Ids, streamer: Any, **options: Any) -> Ids:
        input_ids = self._torch.from_numpy(ids).to(self._device)
        mask = self._torch.ones_like(input_ids)
        tokens = self._model.generate(input_ids, attention_mask=mask, streamer=streamer, **options)
        return np.asarray(tokens[:, ids.shape[1] :].cpu().numpy())

    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        """Return a step with `torch.optim.AdamW`, with refdiff's hyperparameters and groups for weight decay."""
        model = self._load(folder).train()
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = self._torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
        input_ids = self._torch.from_numpy(ids).to(self._device)

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step


class Ceilings(Side):
    """The limits of this machine, for operands of a favourable shape, to which measured rates are compared.

    `gemv` is the rate of matrix-vector products in NumPy's BLAS on all its threads, and shares are relative to it. A
    processor can read faster: Python threads that each multiply single rows sometimes do. So `read` also measures a sum
    of integers on these threads, which takes little more than reading. A side above both rates was measured wrongly.
    """

    def measure(self, row: Row) -> Iterator[Measurement]:
        """Yield `READY`, then per measurement the `kind` of the row's ceiling, its `rate` and, for gemv, `read`."""
        name = row.kind.ceiling
        if self.settings.backend == "cupy":
            name = {"gemv": "copy", "sgemm": "matmul"}[name]
        measure_rate: Callable[[], Measurement] = getattr(self, name)()
        yield READY
        while True:
            yield {"kind": name, **measure_rate()}

    def gemv(self, rows: int = WORKING_SET // 4 // 8192, columns: int = 8192) -> Callable[[], Measurement]:
        """Measure in bytes per second how fast matrix-vector products and a sum read a weight."""
        from refdiff.backends.numpy.thread_pool import Workers

        matrix, vector = np.full((rows, columns), 0.5, np.float32), np.ones(columns, np.float32)
        product, numbers = np.empty(rows, np.float32), matrix.view(np.uint64)
        workers = Workers(self.settings.threads)

        def read() -> None:
            workers.split(rows, lambda start, stop: np.add.reduce(numbers[start:stop], axis=None))

        def measure_rate() -> Measurement:
            gemv = self._mean_seconds(lambda: np.matmul(matrix, vector, out=product))
            time.sleep(self.settings.pause)
            with workers.running():
                return {"rate": matrix.nbytes / gemv, "read": matrix.nbytes / self._mean_seconds(read)}

        return measure_rate

    def sgemm(self, size: int = 2048) -> Callable[[], Measurement]:
        """Measure large matrix products, in multiplications and additions per second."""
        square = np.random.default_rng(0).standard_normal((size, size), np.float32)
        result = np.empty_like(square)
        return lambda: {"rate": 2 * size**3 / self._mean_seconds(lambda: np.matmul(square, square, out=result))}

    def copy(self, size: int = WORKING_SET, times: int = 4) -> Callable[[], Measurement]:
        """Measure in bytes per second how fast the device reads and writes, over `times` copies in one timing."""
        import cupy

        source, target = cupy.zeros(size, dtype=np.uint8), cupy.empty(size, dtype=np.uint8)

        def copy() -> None:
            for _ in range(times):
                cupy.copyto(target, source)

        return lambda: {"rate": 2 * size * times / self._fastest_seconds(copy)}

    def matmul(self, size: int = 8192) -> Callable[[], Measurement]:
        """Measure the device's matrix products as the model calls them, in multiplications and additions per second."""
        import cupy
        import ml_dtypes

        from refdiff.backends.cupy.device import Device

        dtype = self.settings.dtype
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        a, b = (cupy.random.standard_normal((size, size), dtype=np.float32).astype(kind) for _ in range(2))
        multiply = Device().product if dtype in SIXTEEN_BITS else cupy.matmul
        return lambda: {"rate": 2 * size**3 / self._fastest_seconds(lambda: multiply(a, b))}

    def _mean_seconds(self, work: Callable[[], Any]) -> float:
        """Return the mean seconds of calls for `min_seconds`. A first call, which wakes the threads, does not count."""
        work()
        started, count = self.clock(), 0
        while count == 0 or self.clock() - started < self.settings.min_seconds:
            work()
            count += 1
        return (self.clock() - started) / count

    def _fastest_seconds(self, work: Callable[[], Any]) -> float:
        return min(self.time_call(work)[0] for _ in range(DEVICE_REPEATS))


SIDES = {
    "refdiff": RefdiffSide,
    "stored": StoredSide,
    "transformers": TransformersSide,
    "ceilings": Ceilings,
}


def make_side(name: str, settings: BenchSettings) -> Side:
    """Return a side, prepared."""
    side = SIDES[name](settings)
    side.prepare()
    return side
