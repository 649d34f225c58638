"""The other libraries as they are measured: NumPy and ONNX Runtime multiply; transformers, on torch, has the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.inputs import Ids
from refdiff.bench.side import FloatArray, Side
from refdiff.browser import require


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

    def prepare(self) -> None:
        self._onnx, self._runtime = (require(name, "--against onnxruntime") for name in ("onnx", "onnxruntime"))

    def hold(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
        """Make one session, which has its threads once, of a node for each weight; what it reads and writes is bound.

        A session for each weight would have threads for each, and those of the last one spin while the next one works.
        """
        ort, tokens, (outputs, inputs) = self._runtime, len(x), weights[0].shape
        results = [np.empty((tokens, outputs), np.float32) for _ in weights]
        names = [f"w{i}" for i in range(len(weights))]
        self._given = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weight.T)) for weight in weights]
        held = ", ".join(f'float[{inputs}, {outputs}] {name} = ["location": "memory"]' for name in names)  # not copied
        given = ", ".join(f"float[{tokens}, {outputs}] x{name}" for name in names)
        nodes = " ".join(f"x{name} = MatMul(x, {name})" for name in names)
        model = self._onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 17]> '
            f"products (float[{tokens}, {inputs}] x) => ({given}) <{held}> {{ {nodes} }}"
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.settings.threads, 1
        options.add_external_initializers(names, self._given)
        session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        for name, y in zip(names, results, strict=True):
            binding.bind_output(f"x{name}", "cpu", 0, np.float32, y.shape, y.ctypes.data)

        def multiply() -> FloatArray:
            session.run_with_iobinding(binding)
            return results[-1]  # the binding has addresses alone, so all are kept here

        return multiply


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
        self._class = transformers.DiffLlamaForCausalLM  # imported when it is named: not while loading is timed

    def command(self, prompt: str) -> list[str]:
        return ["-c", WHAT_ONE_WOULD_WRITE, self.folder, prompt, self.settings.dtype, self._device]

    def open(self, folder: str) -> None:
        self._model: Any = self._loaded(folder).eval()
        self._model.generation_config.eos_token_id = None
        self.itemsize = int(self._model.dtype.itemsize)

    def _loaded(self, folder: str) -> Any:
        return self._class.from_pretrained(
            folder, dtype=getattr(self._torch, self.settings.dtype), attn_implementation="sdpa", local_files_only=True
        ).to(self._device)

    def generate(self, ids: Ids, streamer: Any, **options: Any) -> Ids:
        given = self._torch.from_numpy(ids).to(self._device)
        mask = self._torch.ones_like(given)
        made = self._model.generate(given, attention_mask=mask, streamer=streamer, **options)
        return np.asarray(made[:, ids.shape[1] :].cpu().numpy())

    def hold(self, weights: list[FloatArray], x: FloatArray) -> Callable[[], Any]:
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
        given = self._torch.from_numpy(ids).to(self._device)

        def one_step() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=given, labels=given, use_cache=False).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return one_step
