"""Models that are small enough to reason about: a recurrent one whose every token matters, and a table of bigrams."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from refdiff.backends import Backend
from refdiff.generation import generate
from refdiff.generation.stream import split_sequences


class FakeCache:
    """Keeps the state after every token, (B, T, D), as a KV cache keeps keys and values."""

    def __init__(self, states: np.ndarray) -> None:
        self.states = states

    def __len__(self) -> int:
        return int(self.states.shape[1])

    def reorder(self, indices: Any) -> None:
        self.states = self.states[np.asarray(indices)]

    def crop(self, length: int) -> None:
        assert 0 <= length <= len(self)
        self.states = self.states[:, :length]


class FakeModel:
    """h_t = tanh(A h_{t−1} + E[x_t] + 0.01 position), logits = W h_t; a masked token leaves h as it is."""

    def __init__(self, seed: int = 0, V: int = 23, D: int = 7, scale: float = 3.0, **config: Any) -> None:
        rng = np.random.default_rng(seed)
        self.A, self.E, self.W = rng.normal(0, 0.6, (D, D)), rng.normal(0, 1, (V, D)), rng.normal(0, scale, (V, D))
        fields = {"vocab_size": V, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
        sizes = {"max_position_embeddings": 512, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 2}
        rope = {"rope_parameters": {"rope_type": "default"}}
        self.config = SimpleNamespace(**fields | sizes | rope | config)
        self.base_params = {"norm": {"weight": np.ones(D)}}
        self.head_inputs = ("labels", "logits_to_keep")
        self.backend = Backend()
        tokens = ("eos_token_id", "pad_token_id", "bos_token_id")
        self.generation_config: dict[str, Any] = {name: getattr(self.config, name) for name in tokens}
        self.source: str | None = None
        self.calls: list[tuple[int, int]] = []

    def __repr__(self) -> str:
        return "FakeModel"  # in the names of tests, which must not change from run to run

    def __call__(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        position_ids: np.ndarray | None = None,
        cache: FakeCache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> SimpleNamespace:
        B, T = input_ids.shape
        self.calls.append((B, T))
        D = self.A.shape[0]
        past = 0 if cache is None else len(cache)
        cache = cache or FakeCache(np.zeros((B, 0, D)))
        mask = np.ones((B, past + T), dtype=int) if attention_mask is None else attention_mask
        assert mask.shape == (B, past + T)
        assert cache.states.shape[0] == B
        if position_ids is None:
            position_ids = np.broadcast_to(np.arange(past, past + T), (B, T))
        states = [cache.states[:, t] for t in range(past)]
        h = states[-1] if states else np.zeros((B, D))
        for t in range(T):
            new = np.tanh(h @ self.A.T + self.E[input_ids[:, t]] + 0.01 * position_ids[:, t, None])
            h = np.where(mask[:, past + t, None] == 1, new, h)
            states.append(h)
        cache.states = np.stack(states, axis=1)
        hidden = cache.states[:, past:]
        logits = hidden[:, -logits_to_keep:] @ self.W.T
        return SimpleNamespace(
            logits=logits, cache=cache, hidden_states=(hidden, hidden) if output_hidden_states else None
        )


class Bigrams(FakeModel):
    """p(next | last token) is a row of a table; the rest of the history does not matter."""

    def __init__(self, table: Any, **config: Any) -> None:
        self.table = np.asarray(table, dtype=np.float64)
        super().__init__(0, len(self.table), **config)

    def __call__(self, input_ids: np.ndarray, logits_to_keep: int = 0, **options: Any) -> SimpleNamespace:
        out = super().__call__(input_ids, logits_to_keep=logits_to_keep, **options)
        with np.errstate(divide="ignore"):
            out.logits = np.log(self.table)[input_ids[:, -logits_to_keep:]]
        return out


class Recorder:
    """A streamer that keeps what it receives, row by row."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.puts: list[Any] = []
        self.ended = 0

    def put(self, value: Any) -> None:
        self.puts.append(value)
        rows = split_sequences(value)
        self.rows = self.rows or [[] for _ in rows]
        for row, new in zip(self.rows, rows, strict=True):
            row.extend(new.tolist())

    def end(self) -> None:
        self.ended += 1


def everything(model: Any, prompts: Any, **options: Any) -> Any:
    """What `generate` returns when it is asked for all that it has."""
    return generate(model, prompts, return_dict_in_generate=True, output_scores=True, output_logits=True, **options)


def words(*vocabulary: str) -> Any:
    """A tokenizer whose tokens are the given strings, joined as they are."""
    from tokenizers import Tokenizer, decoders, models

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    backend.decoder = decoders.Fuse()
    return backend


def letters() -> Any:
    """One letter a token: id 0 is "a", 1 is "b", …"""
    return words(*[chr(ord("a") + i) for i in range(26)])
