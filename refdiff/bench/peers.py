"""The other libraries as they are measured: NumPy and ONNX Runtime multiply; transformers, on torch, has the model."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.bench.device import TorchGpu, UnavailableError
from refdiff.bench.model_side import LOOKED_UP, Arrivals, Ids, ModelSide
from refdiff.bench.side import FloatArray, ProductSide, Settings


def imported(names: tuple[str, ...], needs: str) -> list[Any]:
    """Import the modules that a side needs.

    Raises:
        UnavailableError: one of them is not installed.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UnavailableError(f"--against {needs}: {error}") from None


class NumpySide(ProductSide):
    """`x @ weight.T` on the threads of NumPy's BLAS, which has GEMV for one token and GEMM for more."""

    def hold(self, weights: list[FloatArray]) -> Callable[[FloatArray], Any]:
        """Multiply into the same array again and again, as ONNX Runtime does."""
        out = np.empty((0, 0), np.float32)

        def multiply(x: FloatArray) -> FloatArray:
            nonlocal out
            if len(out) != len(x):
                out = np.empty((len(x), len(weights[0])), np.float32)
            for weight in weights:
                np.matmul(x, weight.T, out=out)
            return out

        return multiply


class OnnxRuntimeSide(ProductSide):
    """MatMul on the CPU."""

    def prepare(self) -> dict[str, Any]:
        """Import onnx, which writes the graph, and onnxruntime, which runs it."""
        needs = "onnxruntime needs onnxruntime and onnx (pip install onnxruntime onnx)"
        self._onnx, self._runtime = imported(("onnx", "onnxruntime"), needs)
        return {}

    def hold(self, weights: list[FloatArray]) -> Callable[[FloatArray], Any]:
        """Make one session, which has its threads once, of a node for each weight; what it reads and writes is bound.

        A session for each weight would have threads for each, and those of the last one spin while the next one works.
        """
        runtime, helper, number = self._runtime, self._onnx.helper, self._onnx.TensorProto.FLOAT
        outputs, inputs = weights[0].shape
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.settings.threads, 1
        products = {f"y{i}": f"w{i}" for i in range(len(weights))}
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", held], [result]) for result, held in products.items()],
            "products",
            [helper.make_tensor_value_info("x", number, ["n", inputs])],
            [helper.make_tensor_value_info(result, number, ["n", outputs]) for result in products],
            [self._in_a_file(held, (inputs, outputs)) for held in products.values()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with tempfile.TemporaryDirectory(prefix="refdiff-bench-", ignore_cleanup_errors=True) as folder:
            for held, weight in zip(products.values(), weights, strict=True):
                np.ascontiguousarray(weight.T).tofile(Path(folder, held))
            Path(folder, "model.onnx").write_bytes(model.SerializeToString())
            session = runtime.InferenceSession(
                str(Path(folder, "model.onnx")), options, providers=["CPUExecutionProvider"]
            )
        bound: list[Any] = [None]

        def multiply(x: FloatArray) -> Any:
            if bound[0] is not x:
                bound[:] = x, *self._bind(session, list(products), x, outputs)
            _, binding, results = bound
            session.run_with_iobinding(binding)
            return results[-1]

        return multiply

    def _in_a_file(self, name: str, shape: tuple[int, int]) -> Any:
        """Declare a weight whose numbers are in a file of its name: in the graph they would be copied three times."""
        tensor = self._onnx.TensorProto(name=name, dims=shape, data_type=self._onnx.TensorProto.FLOAT)
        tensor.data_location = self._onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
        return tensor

    def _bind(self, session: Any, names: list[str], x: FloatArray, outputs: int) -> tuple[Any, list[FloatArray]]:
        """Say once where x and the results are, which must both be kept: the binding has their addresses alone."""
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        results = [np.empty((len(x), outputs), np.float32) for _ in names]
        for name, y in zip(names, results, strict=True):
            binding.bind_output(name, "cpu", 0, np.float32, y.shape, y.ctypes.data)
        return binding, results


WHAT_ONE_WOULD_WRITE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, dtype, device = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
given = tokenizer(prompt, return_tensors="pt").to(device)
made = model.generate(**given, do_sample=False, max_new_tokens=1)
print(tokenizer.decode(made[0, given["input_ids"].shape[1]:], skip_special_tokens=True), flush=True)
"""
"""A script that shows the first token after a prompt."""


class TransformersSide(ModelSide):
    """A `transformers.DiffLlamaForCausalLM`; products by `torch.nn.functional.linear`."""

    def prepare(self) -> dict[str, Any]:
        """Import torch and transformers."""
        needs = "transformers needs transformers and torch (pip install transformers torch)"
        self._torch, self._transformers = imported(("torch", "transformers"), needs)
        if self.settings.backend == "cupy":
            self.gpu = TorchGpu(self._torch)
        self._torch.set_num_threads(self.settings.threads)
        self._transformers.logging.set_verbosity_error()
        return {}

    def load(self, folder: str) -> None:
        """Open the checkpoint."""
        self._model: Any = self._loaded(folder).eval()
        self.vocab_size, self.itemsize = int(self._model.config.vocab_size), int(self._model.dtype.itemsize)

    def _loaded(self, folder: str) -> Any:
        return self._transformers.DiffLlamaForCausalLM.from_pretrained(
            folder, dtype=getattr(self._torch, self.settings.dtype), attn_implementation="sdpa", local_files_only=True
        ).to(device_of(self.settings))

    def _there(self, ids: Ids) -> Any:
        return self._torch.from_numpy(ids).to(device_of(self.settings))

    def start(self, ids: Ids, new: int) -> Ids:
        """Read a prompt into a `DynamicCache`, which grows as tokens come."""
        self._cache: Any = self._transformers.DynamicCache(config=self._model.config)
        return self._next(ids)

    def step(self, tokens: Ids) -> Ids:
        """Read one more token a row."""
        return self._next(tokens[:, None])

    def _next(self, ids: Ids) -> Ids:
        with self._torch.inference_mode():
            out = self._model(self._there(ids), cache=self._cache, use_cache=True, logits_to_keep=1)
            return np.asarray(out.logits[:, -1].argmax(dim=-1).cpu().numpy())

    def rewind(self, length: int) -> None:
        """Crop the cache, which takes how many to remove, as a negative number."""
        beyond = self._cache.get_seq_length() - length
        if beyond:
            self._cache.crop(-beyond)

    def by_lookup(self, ids: Ids, new: int, bias: dict[tuple[int, ...], float], streamer: Arrivals) -> Ids:
        """Call its `generate`."""
        self._model.generation_config.eos_token_id = None
        made = self._model.generate(
            self._there(ids),
            attention_mask=self._there(np.ones(ids.shape, np.int64)),
            do_sample=False,
            max_new_tokens=new,
            prompt_lookup_num_tokens=LOOKED_UP,
            sequence_bias=bias,
            streamer=streamer,
        )
        return np.asarray(made[:, ids.shape[1] :].cpu().numpy())

    def hold(self, weights: list[FloatArray]) -> Callable[[FloatArray], Any]:
        """Call torch's product."""
        linear, torch = self._torch.nn.functional.linear, self._torch
        held = [torch.from_numpy(weight) for weight in weights]

        def multiply(x: FloatArray) -> Any:
            with torch.inference_mode():
                for weight in held:
                    result = linear(torch.from_numpy(x), weight)
                return result.numpy()

        return multiply

    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        """Make a step with `torch.optim.AdamW`, its numbers and which parameters decay being refdiff's."""
        model = self._loaded(folder).train()
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = self._torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
        given = self._there(ids)

        def one_step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=given, labels=given, use_cache=False).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return one_step


def device_of(settings: Settings) -> str:
    """Name the device in torch's terms."""
    return "cuda" if settings.backend == "cupy" else "cpu"
