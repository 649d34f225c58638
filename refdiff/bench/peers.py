"""The other libraries as they are measured: NumPy and ONNX Runtime multiply; transformers, on torch, has the model."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.bench.inputs import Bias, Ids
from refdiff.bench.machine import Gpu, UnavailableError
from refdiff.bench.side import LOOKED_UP, Answer, Arrivals, FloatArray, Settings, Side


def _imported(*names: str) -> list[Any]:
    """Import the modules that a side needs; raise `UnavailableError` where one of them is not installed."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        needs = f"{names[-1]} needs {names[-1]} and {names[0]} (pip install {' '.join(reversed(names))})"
        raise UnavailableError(f"--against {needs}: {error}") from None


class NumpySide(Side):
    """`x @ weight.T` on the threads of NumPy's BLAS, which has GEMV for one token and GEMM for more."""

    def hold(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        """Multiply into the same array again and again, as ONNX Runtime does."""
        out = np.empty((len(x), len(weights[0])), np.float32)

        def multiply() -> FloatArray:
            for weight in weights:
                np.matmul(x, weight.T, out=out)
            return out

        return multiply


class OnnxRuntimeSide(Side):
    """MatMul on the CPU."""

    def prepare(self) -> Answer:
        """Import onnx, which writes the graph, and onnxruntime, which runs it."""
        self._onnx, self._runtime = _imported("onnx", "onnxruntime")
        return {}

    def hold(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        """Make one session, which has its threads once, of a node for each weight; what it reads and writes is bound.

        A session for each weight would have threads for each, and those of the last one spin while the next one works.
        """
        results = {f"y{i}": np.empty((len(x), len(weight)), np.float32) for i, weight in enumerate(weights)}
        session = self._session(list(results), weights)
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        for name, y in results.items():
            binding.bind_output(name, "cpu", 0, np.float32, y.shape, y.ctypes.data)

        def multiply() -> FloatArray:
            session.run_with_iobinding(binding)
            return list(results.values())[-1]  # the binding has addresses alone, so all are kept here

        return multiply

    def _session(self, names: list[str], weights: list[FloatArray]) -> Any:
        """Load a model of one product per weight, whose numbers are in files: in the graph they would be copied."""
        helper, proto = self._onnx.helper, self._onnx.TensorProto
        outputs, inputs = weights[0].shape
        tensors = []
        with tempfile.TemporaryDirectory(prefix="refdiff-bench-", ignore_cleanup_errors=True) as folder:
            for name, weight in zip(names, weights, strict=True):
                np.ascontiguousarray(weight.T).tofile(Path(folder, f"w{name}"))
                tensor = proto(name=f"w{name}", dims=(inputs, outputs), data_type=proto.FLOAT)
                tensor.data_location = proto.EXTERNAL
                tensor.external_data.add(key="location", value=f"w{name}")
                tensors.append(tensor)
            graph = helper.make_graph(
                [helper.make_node("MatMul", ["x", f"w{name}"], [name]) for name in names],
                "products",
                [helper.make_tensor_value_info("x", proto.FLOAT, ["n", inputs])],
                [helper.make_tensor_value_info(name, proto.FLOAT, ["n", outputs]) for name in names],
                tensors,
            )
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            file = Path(folder, "model.onnx")
            file.write_bytes(model.SerializeToString())
            options = self._runtime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = self.settings.threads, 1
            return self._runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


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


class TransformersSide(Side):
    """A `transformers.DiffLlamaForCausalLM`; products by `torch.nn.functional.linear`."""

    def prepare(self) -> Answer:
        """Import torch and transformers."""
        self._torch, self._transformers = _imported("torch", "transformers")
        self._device = torch_device(self.settings)
        if self._device == "cuda":
            self.gpu = Gpu.from_torch(self._torch)
        self._torch.set_num_threads(self.settings.threads)
        self._transformers.logging.set_verbosity_error()
        return {}

    def open(self, folder: str) -> None:
        """Open the checkpoint."""
        self._model: Any = self._loaded(folder).eval()
        self.vocab_size, self.itemsize = int(self._model.config.vocab_size), int(self._model.dtype.itemsize)

    def _loaded(self, folder: str) -> Any:
        return self._transformers.DiffLlamaForCausalLM.from_pretrained(
            folder, dtype=getattr(self._torch, self.settings.dtype), attn_implementation="sdpa", local_files_only=True
        ).to(self._device)

    def _there(self, ids: Ids) -> Any:
        return self._torch.from_numpy(ids).to(self._device)

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

    def by_lookup(self, ids: Ids, new: int, bias: Bias, streamer: Arrivals) -> Ids:
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

    def hold(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        """Call torch's product."""
        torch = self._torch
        given, *held = map(torch.from_numpy, (x, *weights))

        def multiply() -> Any:
            with torch.inference_mode():
                for weight in held:
                    result = torch.nn.functional.linear(given, weight)
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


def torch_device(settings: Settings) -> str:
    """Name the device in torch's terms."""
    return "cuda" if settings.backend == "cupy" else "cpu"
