"""The other libraries: NumPy and ONNX Runtime for matrix products, transformers with torch for everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.inputs import Ids
from refdiff.bench.side import FloatArray, Side
from refdiff.browser import require


class NumpySide(Side):
    """`x @ weight.T` in NumPy's BLAS: GEMV for one token, GEMM for more."""

    def bind_weights(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        """Return a function that multiplies into one preallocated array, as ONNX Runtime does."""
        out = np.empty((len(x), len(weights[0])), np.float32)

        def multiply() -> FloatArray:
            for weight in weights:
                np.matmul(x, weight.T, out=out)
            return out

        return multiply


class OnnxRuntimeSide(Side):
    """ONNX Runtime's MatMul on the CPU."""

    def prepare(self) -> None:
        self._onnx, self._runtime = (require(name, "--against onnxruntime") for name in ("onnx", "onnxruntime"))

    def bind_weights(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        """Return a function that runs one session with a MatMul node for each weight and bound input and outputs.

        With a session for each weight, the threads of the previous session would spin while the next one works.
        """
        ort, tokens, (outputs, inputs) = self._runtime, len(x), weights[0].shape
        results = [np.empty((tokens, outputs), np.float32) for _ in weights]
        names = [f"w{i}" for i in range(len(weights))]
        self._weights = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weight.T)) for weight in weights]
        initializers = ", ".join(f'float[{inputs}, {outputs}] {name} = ["location": "memory"]' for name in names)
        products = ", ".join(f"float[{tokens}, {outputs}] x{name}" for name in names)
        nodes = " ".join(f"x{name} = MatMul(x, {name})" for name in names)
        model = self._onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 17]> '
            f"products (float[{tokens}, {inputs}] x) => ({products}) <{initializers}> {{ {nodes} }}"
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.settings.threads, 1
        options.add_external_initializers(names, self._weights)
        session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        for name, y in zip(names, results, strict=True):
            binding.bind_output(f"x{name}", "cpu", 0, np.float32, y.shape, y.ctypes.data)

        def multiply() -> FloatArray:
            session.run_with_iobinding(binding)
            return results[-1]  # `results` must stay alive: the binding has only their addresses

        return multiply


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
    """`transformers.DiffLlamaForCausalLM`, and `torch.nn.functional.linear` for products."""

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

    def bind_weights(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        torch = self._torch
        x_tensor, *tensors = map(torch.from_numpy, (x, *weights))

        def multiply() -> Any:
            with torch.inference_mode():
                for weight in tensors:
                    result = torch.nn.functional.linear(x_tensor, weight)
                return result.numpy()

        return multiply

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
