"""transformers on torch, as it is measured: sdpa attention, no gradients where none are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff.bench.gpu import TorchGpu
from refdiff.bench.model_side import LOOKED_UP, Arrivals, Ids, ModelSide
from refdiff.bench.side import FloatArray, Settings, UnavailableError

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
        """Import torch and transformers.

        Raises:
            UnavailableError: one of them is not installed.
        """
        try:
            self._torch: Any = importlib.import_module("torch")
            self._transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise UnavailableError(
                f"--against transformers needs transformers and torch (pip install 'refdiff[parity]'): {error}"
            ) from None
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
        """Read a prompt into a `DynamicCache`, which makes room as tokens come."""
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
