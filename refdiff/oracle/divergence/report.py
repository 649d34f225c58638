"""The result of `first_divergence`: every point, the first wrong one, and where its mistake may be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from refdiff.oracle.printing import list_first, wrap_text
from refdiff.oracle.trace.point_names import near_point

MAX_NAMED = 4
"""How many points of other layers, or kinds of missing points, are named; more are counted."""
MAX_UNKNOWN = 8
"""How many names that are no point are listed."""

_LAYER = re.compile(r"layers\.\d+")
_CUT = re.compile(r"layers\.\d+(\.\w+_layernorm)?$")
"""Points that all later ones of a model are computed from, beside the angles of RoPE."""


@dataclass(frozen=True)
class Stage:
    """The comparison of one point.

    status: "equal", "differs", or "missing" in the run under test. what: the order of axes if it is not the usual one,
    or how the point differs. ratio: the error of the worst row over its limit. row: the index of that row. error, size:
    root mean squares of its error and of its expected value.
    """

    path: str
    status: str
    what: str = ""
    ratio: float = 0.0
    row: tuple[int, ...] = ()
    error: float = 0.0
    size: float = 0.0


@dataclass(frozen=True)
class Divergence:
    """The result of `first_divergence`; true if something diverges.

    path: the first wrong point, or None. precision: the type that the run computes in. stages: every point of the
    reference in order. unknown: names of the run under test that are no point. apart: differences between the two
    recordings, such as other tokens.
    """

    path: str | None
    precision: str
    stages: tuple[Stage, ...]
    unknown: tuple[str, ...]
    apart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True where something diverges."""
        return self.path is not None

    @property
    def first(self) -> Stage | None:
        """The stage of the first wrong point, or None."""
        return next((s for s in self.stages if s.path == self.path), None)

    def __str__(self) -> str:
        return self.text()

    def text(self, worst: int | None = None) -> str:
        """Return the report: the first wrong point, then all compared points, or only the `worst` of them."""
        compared = [s for s in self.stages if s.status != "missing"]
        missing = [s.path for s in self.stages if s.status == "missing"]
        count = f"{len(compared)} of {len(self.stages)} points compared in {self.precision}"
        head = f"{count}, each computed from those before it"
        lines = [*self.apart, head, *self._answer(compared, missing)]
        lines += ["", f"  {'':12}{'error/allowed':>13}  point"]
        largest = sorted(compared, key=lambda s: (s is not self.first, s.status != "differs", -s.ratio))[:worst]
        for stage in sorted(largest, key=compared.index):
            mark = "DIFFERS" if stage.status == "differs" else stage.status
            lines += [f"  {mark:12}{stage.ratio:>13.2g}  {stage.path}"]
            if stage.what and worst is None:
                lines += [" " * 29 + stage.what]
        if hidden := len(compared) - len(largest):
            lines += [f"  and {hidden} more points; --all shows them"]
        if self.unknown:
            lines += ["", f"no point of the reference: {list_first(self.unknown, MAX_UNKNOWN)}"]
            hints = [f"  {name}{hint}" for name in self.unknown[:MAX_UNKNOWN] if (hint := near_point(name, missing))]
            lines += hints[:3]
        return wrap_text("\n".join(lines))

    def _answer(self, compared: list[Stage], missing: list[str]) -> list[str]:
        """Return the lines on the first wrong point, or that there is none."""
        if self.first is None:
            kinds = list(dict.fromkeys(map(_short, missing)))
            if len(kinds) > MAX_NAMED + 1:
                kinds[MAX_NAMED:] = [f"and {len(kinds) - MAX_NAMED} more kinds"]
            absent = [f"not in the trace: {', '.join(kinds)}"] if kinds else []
            return [*absent, "", "nothing diverges"]
        lines = ["", f"first divergence: {self.path}", f"  {self.first.what}"]
        if self.first.row:
            times = f", {self.first.ratio:.3g} times what rounding explains" if self.first.ratio < float("inf") else ""
            lines += [f"  worst row {self.first.row}{times}"]
        before = [s.path for s in compared[: compared.index(self.first)] if s.status == "equal"]
        skipped = self._missing_before(self.first)
        if skipped and (self.first.error or self.first.size):  # zeros: the shape was wrong, so nothing was compared
            lines += [f"  not in the trace, so the mistake may be there: {', '.join(skipped)}"]
        elif before:
            lines += [f"  right up to {before[-1]}"]
        return lines

    def _missing_before(self, first: Stage) -> list[str]:
        """List the missing points before the first wrong one, since the last norm or layer that was compared."""
        before, layer = self.stages[: self.stages.index(first)], _layer(first.path)
        since = max((n for n, s in enumerate(before) if s.status != "missing" and _CUT.search(s.path)), default=-1)
        missing = [s.path for n, s in enumerate(before) if s.status == "missing" and (n > since or "rotary" in s.path)]
        near = [_short(path) for path in missing if _layer(path) in ("", layer)]
        far = [path for path in missing if _layer(path) not in ("", layer)]
        conjunction = "and " if near else ""
        return near + (far if len(far) <= MAX_NAMED else [f"{conjunction}{len(far)} points of the layers before"])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as values of JSON; infinities and NaN become null."""
        stages = [{name: _to_json(x) for name, x in vars(stage).items()} for stage in self.stages]
        said = {"diverges": bool(self), "path": self.path, "what": self.first.what if self.first else ""}
        more = {"apart": list(self.apart), "precision": self.precision}
        return {**said, **more, "stages": stages, "unknown": list(self.unknown)}


def _layer(path: str) -> str:
    match = _LAYER.search(path)
    return match[0] if match else ""


def _short(path: str) -> str:
    """Return the last part of a path, or the last two if it is "input" or a number."""
    head, _, last = path.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last == "input" or last.isdigit() else last


def _to_json(x: Any) -> Any:
    if isinstance(x, float):
        return x if abs(x) < float("inf") else None
    return list(x) if isinstance(x, tuple) else x
