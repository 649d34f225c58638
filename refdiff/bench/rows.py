"""What can be measured: the rows of the table, how the command line spells them, and how much work each is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from refdiff.bench.side import LOOKED_UP, WEIGHT, Settings
from refdiff.bench.sizes import TRAINED
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.names import count_parameters, parameter_shapes

_MANY = "TOKENS[xN]"
_OTHERS = ("transformers",)


@dataclass(frozen=True)
class Kind:
    """Rows of one kind: what follows the name on the command line, how a table names them, and how they are measured.

    sides: that take part beside refdiff. needs_model: the checkpoint is needed; training has models of its own, and the
    others have none. new_process: for each request. warm_up: what the request before those that count asks for instead;
    None: there is none. Of the others the first finds files not yet read.
    """

    form: str
    title: str
    sides: tuple[str, ...] = ("transformers", "stored")
    needs_model: bool = True
    new_process: bool = False
    warm_up: dict[str, int] | None = field(default_factory=dict)


KINDS = {
    "cold": Kind("", "start to first token", _OTHERS),  # of the command, with a prompt of 16 tokens
    "load": Kind("", "load", new_process=True),
    "prefill": Kind(_MANY, "prefill {size}{rows}", warm_up={"size": 128}),  # a prompt, to the next token
    "decode": Kind(_MANY, "decode {size}{rows}", warm_up={"steps": 1}),  # one token at a time after TOKENS, N sequences
    "lookup": Kind("", "prompt lookup, a copy", warm_up={"steps": 2 * LOOKED_UP}),  # a text that repeats itself
    "edit": Kind("", "prompt lookup, an edit", warm_up={"steps": 2 * LOOKED_UP}),  # a program in which names change
    # peak of a process that reads TOKENS and decodes 16
    "memory": Kind(_MANY, "memory {size}{rows}", new_process=True, warm_up=None),
    # of a weight of 2048 × 8192
    "product": Kind("TOKENS", "product, {tokens}", (*_OTHERS, "onnxruntime", "numpy"), needs_model=False),
    # the oracle's, in seconds of the processor: TOKENS queries and keys of N heads in bfloat16
    "check": Kind(_MANY, "check {size}, {heads}", (), needs_model=False, new_process=True, warm_up=None),
    "diagnose": Kind(_MANY, "diagnose {size}, {heads}", (), needs_model=False, new_process=True, warm_up=None),
    "train": Kind("MODEL", "training step, {model}", _OTHERS, needs_model=False),  # forward, backward and AdamW
}

ORACLE_KINDS = ("check", "diagnose")
"""Kinds of rows that have no other side."""

_NUMBER = "[1-9][0-9]{0,5}"
_FORMS = {
    "": "",
    "TOKENS": f":(?P<size>{_NUMBER})",
    _MANY: f":(?P<size>{_NUMBER})(x(?P<batch>{_NUMBER}))?",
    "MODEL": f":(?P<model>{'|'.join(TRAINED)})",
}


@dataclass(frozen=True)
class Row:
    """One row: `size` counts tokens, or 0 where none are; `batch` sequences or heads; `model` is what is trained."""

    kind: str
    size: int = 0
    batch: int = 1
    model: str = ""

    @property
    def spelled(self) -> str:
        """How the command line spells it."""
        size = self.model or (str(self.size) if self.size else "")
        return self.kind + (f":{size}" if size else "") + (f"x{self.batch}" if self.batch > 1 else "")

    @property
    def title(self) -> str:
        """How a table names it."""
        return KINDS[self.kind].title.format(
            size=self.size,
            model=self.model,
            rows=f", {self.batch} rows" if self.batch > 1 else "",
            tokens=f"{self.size} token{'s' * (self.size > 1)}",
            heads=f"{self.batch} head{'s' * (self.batch > 1)}",
        )

    @property
    def request(self) -> dict[str, Any]:
        """What a side does, as a request to its process."""
        many = {"batch": self.batch} if KINDS[self.kind].form == _MANY else {}
        return {"do": self.kind, **({"size": self.size} if self.size else {}), **many}

    @property
    def needs_model(self) -> bool:
        """Whether it needs the checkpoint."""
        return KINDS[self.kind].needs_model


def parse_rows(text: str) -> list[Row]:
    """Read `prefill:512,decode:128x8,load`; raise `ValueError` for a row that there is not."""
    return list(dict.fromkeys(_parse(part.strip()) for part in text.split(",")))


def _parse(part: str) -> Row:
    kind, colon, rest = part.partition(":")
    if kind not in KINDS:
        raise ValueError(f"got {part!r}, expected {', '.join(KINDS)}, as in decode:128x8")
    form = KINDS[kind].form
    if (match := re.fullmatch(_FORMS[form], colon + rest)) is None:
        spelled = f"{kind}:{form}" if form else kind
        example = {"": "", "MODEL": f"; MODEL is {' or '.join(TRAINED)}"}.get(form, f", as in {kind}:128")
        raise ValueError(f"got {part!r}, expected {spelled}{example}")
    found = match.groupdict()
    return Row(kind, int(found.get("size") or 0), int(found.get("batch") or 1), found.get("model") or "")


ALL = parse_rows(
    "cold,load,prefill:128,prefill:512,prefill:2048,prefill:8192,decode:128,decode:2048,decode:8192,"
    "decode:128x2,decode:128x4,decode:128x8,decode:128x16,lookup,edit,memory:128,memory:2048,memory:8192,"
    "memory:128x4,memory:128x16,product:1,product:2,product:4,product:8,product:16,product:128,product:512"
)
"""What is measured where nothing is said."""

QUICK = parse_rows("cold,load,prefill:32,decode:32,decode:32x3,lookup,edit,memory:32,product:1,product:8")
TRAIN = parse_rows("train:3m,train:30m")
QUICK_TRAIN = parse_rows("train:tiny")
"""What `--quick`, `--train` and both measure."""

FEW = 16
"""Up to so many tokens, what a product costs is reading its weight."""


@dataclass(frozen=True)
class Work:
    """How much a row does.

    amount: what is divided by the seconds to give a rate in `unit` (tok/s, GB/s, GFLOP/s); 0 for s and B.
    ceiling: the limit of the machine that it is compared with: gemv, on a device copy (bytes a second), or sgemm, on a
        device matmul (operations a second), or "".
    needed: bytes that a pass must read beside its matrices, or operations that it must do.
    matrices: how many numbers of matrices it must read, of which each side says how many bytes they have.
    spared: how many of the operations a side leaves out that computes a prompt's last layer for the last token alone.
    """

    unit: str
    ceiling: str = ""
    amount: float = 0
    needed: int = 0
    matrices: int = 0
    spared: int = 0

    def rate(self, measured: float) -> float:
        """Turn seconds (or bytes) into what the unit says."""
        return self.amount / measured if self.amount else measured

    def counted(self, itemsize: int = 0, sparing: bool = False) -> int:
        """Count what one side needs, whose matrices have `itemsize` bytes a number, or which spares operations.

        Whatever else it does (scores that causality hides, or computed once more for the other half of the values, as
        transformers does) counts for nobody.
        """
        return self.needed + self.matrices * itemsize - self.spared * sparing


def work_of(row: Row, config: DiffLlamaConfig | None, settings: Settings) -> Work:
    """Count a row's work on a model; a row that needs none may have None."""
    s = settings
    gemv, sgemm = ("copy", "matmul") if s.backend == "cupy" else ("gemv", "sgemm")
    if row.kind in ("cold", "load", *ORACLE_KINDS):
        return Work("s")
    if row.kind == "memory":
        return Work("B")
    if row.kind == "product":
        numbers = WEIGHT[0] * WEIGHT[1]
        if row.size <= FEW:
            return Work("GB/s", gemv, 4 * numbers / 1e9, 4 * numbers)
        return Work("GFLOP/s", sgemm, 2 * numbers * row.size / 1e9, 2 * numbers * row.size)
    if row.kind in ("lookup", "edit"):
        return Work("tok/s", amount=s.looked_up)
    if config is None:
        raise ValueError(f"{row.spelled} needs a model")
    head = config.vocab_size * config.hidden_size
    if row.kind == "prefill":
        needed, spared = _forward(config, row.size) + 2 * head, _spared(config, row.size)
        return Work("tok/s", sgemm, row.size * row.batch, needed * row.batch, spared=spared * row.batch)
    if row.kind == "decode":
        itemsize = 8 if s.dtype == "float64" else 4
        cached = sum(_cached(config) * (row.size + i) for i in range(1, s.steps + 1)) * row.batch
        matrices = s.steps * (_matrices(config, ".layers.") + head)
        return Work("tok/s", gemv, s.steps * row.batch, cached * itemsize, matrices)
    backward = 3  # the gradients of both factors of every product cost as much as the product each
    needed = backward * s.batch * (_forward(config, s.context) + 2 * head * s.context)
    return Work("tok/s", sgemm, s.batch * s.context, needed)


def _matrices(config: DiffLlamaConfig, part: str, without: tuple[str, ...] = ()) -> int:
    """Count the numbers of the matrices whose names have this part."""
    shapes = parameter_shapes(config, "DiffLlamaForCausalLM")
    return count_parameters(s for n, s in shapes.items() if len(s) > 1 and part in n and not n.endswith(without))


def _cached(config: DiffLlamaConfig) -> int:
    """Count the numbers of keys and values that one token has in the cache."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def _forward(config: DiffLlamaConfig, tokens: int) -> int:
    """Count the operations of all layers on a sequence, attention over the keys that causality shows and no others."""
    attention = config.num_hidden_layers * _attention(config, tokens * (tokens + 1) // 2)
    return 2 * _matrices(config, ".layers.") * tokens + attention


def _spared(config: DiffLlamaConfig, tokens: int) -> int:
    """Count the operations of the last layer for all tokens but the last, which are needed for keys and values only."""
    last, kept = f".layers.{config.num_hidden_layers - 1}.", ("k_proj.weight", "v_proj.weight")
    return 2 * _matrices(config, last, kept) * (tokens - 1) + _attention(config, (tokens - 1) * tokens // 2)


def _attention(config: DiffLlamaConfig, pairs: int) -> int:
    """Count a layer's operations for so many pairs of query and key: scores, and as much again for the values."""
    return 2 * 2 * config.num_query_heads * config.head_dim * pairs
