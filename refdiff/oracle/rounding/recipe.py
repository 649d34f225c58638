"""`Recipe`: which types a kernel computes and stores in, by which its rounding errors are judged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from refdiff.messages import did_you_mean
from refdiff.oracle.rounding.number_formats import FORMATS, Format
from refdiff.oracle.spec.validation import parse_fields

ALIASES = {
    "fp32": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
}
STORAGE = ("float32", "bfloat16", "float16")
MATMUL = ("ieee", "tf32", "bfloat16")
TANH = ("exact", "approx")


@dataclass(frozen=True)
class Recipe:
    """The types that a kernel stores and computes in: at each site the storage type or "float32".

    storage: q, k, v, the output and the gradients. Inputs are rounded to it once, before anything is judged; if q has
        this type, the others are taken as they are, such as a float32 bias.
    rope: q and k after RoPE, and RoPE's own products. None = storage.
    scaled_q: q times the scale of the scores, as it enters Q Kᵀ. The storage type for a kernel that rounds q · scale,
        q · scale · log₂ e, or q and k each times √scale, as flax and flex attention with PRESCALE_QK do; "float32" for
        one that scales the scores, or q in float32.
    qk: the scores Q Kᵀ before the softmax; in the backward pass, the gradient of the weights. "float32" for a kernel
        that never stores them, the storage type for an eager one.
    p: the softmax weights as they enter the product with V. None = storage.
    o: the outputs of the two maps, their difference, and the norm's result before it is scaled; in the backward pass,
        dout as it enters products. None = storage, also for a backward pass that takes D = Σ dO∘O from stored outputs.
        "float32" for a kernel that keeps all of these in registers.
    lam: λ and its two exponentials. None = storage.
    norm: the type that the norm after the difference is computed in.
    matmul: "ieee"; or, for float32 products whose factors are cut first, "tf32" (rounded or truncated to 11 significant
        bits, on tensor cores) or "bfloat16" (rounded, the default precision of XLA on a TPU). "tf32" also for "bf16x3",
        JAX's precision "high", which rounds less.
    accumulate: the sums of matrix products. "float32"; or the storage type, for a float16 accumulator of tensor cores
        or a split product whose partial sums are added in 16 bits. The sums of the softmax stay in float32.
    tanh: that of a softcap, "exact" to a unit in the last place of float32; or "approx", a GPU's `tanh.approx.f32` with
        relative errors up to 2⁻¹¹ (NVIDIA, PTX ISA), as in FlashAttention.

    Raises:
        ValueError: a field has a value that it cannot have, such as `matmul="tf32"` with 16-bit storage.
    """

    storage: str = "bfloat16"
    qk: str = "float32"
    p: str | None = None
    o: str | None = None
    lam: str | None = None
    norm: str = "float32"
    matmul: str = "ieee"
    tanh: str = "exact"
    rope: str | None = None
    accumulate: str = "float32"
    scaled_q: str = "float32"

    def __post_init__(self) -> None:
        for name in ("storage", "qk", "p", "o", "lam", "norm", "rope", "accumulate", "scaled_q"):
            value = getattr(self, name)
            value = self.storage if value is None else ALIASES.get(value, value) if isinstance(value, str) else value
            allowed = STORAGE if name == "storage" else tuple(dict.fromkeys((self.storage, "float32")))
            if value not in allowed:
                also = " (the storage type, or float32)" if name != "storage" else ""
                raise ValueError(
                    f"{name}: got {value!r}, expected one of {', '.join(allowed)}{also}{_type_hint(value, allowed)}"
                )
            object.__setattr__(self, name, value)
        for name, kinds in (("matmul", MATMUL), ("tanh", TANH)):
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(kinds)}")
        if self.matmul != "ieee" and self.storage != "float32":
            raise ValueError(f"matmul is {self.matmul!r}, which cuts float32 operands, but storage is {self.storage!r}")

    @staticmethod
    def of(what: Recipe | str | type | np.dtype[Any] | Mapping[str, Any] | None, **changes: Any) -> Recipe:
        """Return the recipe of a storage type, given by name or as a dtype of NumPy or torch; a Recipe as it is.

        "tf32" is float32 with tf32 products. A mapping has fields by name, and so may a text: "bfloat16,lam=float32",
        or a JSON object.

        Args:
            changes: fields to override.

        Raises:
            ValueError: None, an unknown type or field; or as the class.
        """
        if what is None:
            raise ValueError(
                "recipe: got None, expected the type that the kernel stores, 'float32', 'tf32', 'bfloat16' or "
                "'float16', or an oracle.Recipe that says where it rounds"
            )
        if isinstance(what, Recipe):
            return replace(what, **changes) if changes else what
        if isinstance(what, str) and what.lstrip().startswith("{"):
            what = json.loads(what)
        if isinstance(what, str) and "," in what:
            name, *words = what.split(",")
            what = {"storage": name.strip(), **parse_fields(words)}
        if isinstance(what, Mapping):
            known = [f.name for f in fields(Recipe)]
            for name in what:
                if name not in known:
                    hint = did_you_mean(name, known, ", ", ":")
                    raise ValueError(f"{name!r} is no field of a Recipe{hint} there are {', '.join(known)}")
            return Recipe(**{**what, **changes})
        if not isinstance(what, str):
            what = getattr(what, "__name__", str(what)).rpartition(".")[2]  # numpy.float32, torch.bfloat16, a dtype
        if what == "tf32":
            return Recipe(**{"storage": "float32", "matmul": "tf32", **changes})
        if ALIASES.get(what, what) not in STORAGE:
            raise ValueError(
                f"no recipe is called {what!r}: there are float32, tf32, bfloat16, float16{_type_hint(what)}"
            )
        return Recipe(**{"storage": what, **changes})

    @staticmethod
    def eager(storage: str) -> Recipe:
        """Return the recipe of an eager framework, which stores every result, scores too."""
        return Recipe(storage, qk=storage)

    @property
    def u(self) -> float:
        """Unit roundoff of the storage type: 2⁻²⁴, 2⁻⁸ or 2⁻¹¹."""
        return self.type_at("storage").u

    def type_at(self, site: str) -> Format:
        """Return the number type of the field `site`, such as "o"."""
        return FORMATS[getattr(self, site)]

    @property
    def operand_u(self) -> float:
        """Unit roundoff of the factors of products where they are cut (`matmul`); 0 where they are not."""
        return 0.0 if self.matmul == "ieee" else FORMATS[self.matmul].u

    @property
    def scaled_u(self) -> float:
        """Unit roundoff of q · scale where it is stored in 16 bits (`scaled_q`); 0 where it is not."""
        return 0.0 if self.scaled_q == "float32" else self.type_at("scaled_q").u

    @property
    def tanh_error(self) -> float:
        """The largest relative error of an approximate tanh; 0 for an exact one."""
        return 2.0**-11 if self.tanh == "approx" else 0.0

    @property
    def name(self) -> str:
        """A short name: the storage type, then the fields that differ from its defaults."""
        base = Recipe(self.storage)
        rest = [
            f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != getattr(base, f.name)
        ]
        return " ".join([self.storage, *rest])

    def to_dict(self) -> dict[str, str]:
        """Return every field by name: `Recipe(**recipe.to_dict()) == recipe`."""
        return asdict(self)


def _type_hint(value: Any, allowed: Sequence[str] = ("tf32", *STORAGE)) -> str:
    """Return the likely meaning of a type's name that is not allowed, as the end of a message."""
    if value == "tf32":
        return ". tf32 is how float32 is multiplied: storage='float32', matmul='tf32'"
    if value in ("float64", "fp64", "double"):
        return ". float64 is what the truth is computed in; a kernel is judged by what it rounds to"
    names = [*allowed, *(alias for alias, name in ALIASES.items() if name in allowed)]
    return "" if value in STORAGE else did_you_mean(str(value).rpartition(".")[2], names, cutoff=0.7)
