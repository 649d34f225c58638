"""What `first_divergence` answers: every point, the first that is not right, and where its mistake may be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from refdiff.oracle.printing import wrap_text
from refdiff.oracle.trace.known_points import Flow, near_point

MOST = 4
"""So many points of other layers are named; of more, their number."""
LISTED = 8
"""So many names that are no point are listed."""

_LAYER = re.compile(r"layers\.\d+")
MODES = {
    "local": "each point computed from those before it in this run",
    "free": "each point computed from the inputs of the run",
    "recorded": "each point compared with the reference's numbers: its model is not here, or it had a cache",
}


@dataclass(frozen=True)
class Stage:
    """One point: "equal", "equal up to" something, "differs", or "missing" in the run under test.

    what: an arrangement that was undone, what it is equal up to, or how it differs. ratio: its worst row's error, in
    units of what is allowed; row, error and size: where that is, and its root mean squares of error and right value.
    unseen: how far from 1 a factor on the whole point may be that rounding explains.
    """

    path: str
    status: str
    what: str = ""
    ratio: float = 0.0
    row: tuple[int, ...] = ()
    error: float = 0.0
    size: float = 0.0
    unseen: float = 0.0


@dataclass(frozen=True)
class Divergence:
    """What `first_divergence` found: `path` is the first point that is not right, None where all are.

    mode: "local" or "free", or "recorded" where the run could not be repeated and was compared with what the
    reference's file holds. precision: the type that the run was taken to compute in. stages: every point of the
    reference in order. unknown: names of the run under test that are no point. apart: in which ways the two recordings
    are not of the same run, as of other tokens.
    """

    path: str | None
    mode: str
    precision: str
    stages: tuple[Stage, ...]
    unknown: tuple[str, ...]
    apart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True where something diverges."""
        return self.path is not None

    @property
    def first(self) -> Stage | None:
        """The stage of `path`."""
        return next((s for s in self.stages if s.path == self.path), None)

    def __str__(self) -> str:
        return self.text()

    def text(self, worst: int | None = None) -> str:
        """The first point that is not right, then every point compared, or the `worst` of them without remarks."""
        compared = [s for s in self.stages if s.status != "missing"]
        missing = [s.path for s in self.stages if s.status == "missing"]
        head = f"{len(compared)} of {len(self.stages)} points compared in {self.precision}: {MODES[self.mode]}"
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
            more = f", … ({len(self.unknown)})" if len(self.unknown) > LISTED else ""
            lines += ["", f"no point of the reference: {', '.join(self.unknown[:LISTED])}{more}"]
            hints = [f"  {name}{hint}" for name in self.unknown[:LISTED] if (hint := near_point(name, missing))]
            lines += hints[:3]
        return wrap_text("\n".join(lines))

    def _answer(self, compared: list[Stage], missing: list[str]) -> list[str]:
        """What is said of the first point that is not right, or that there is none."""
        if self.first is None:
            kinds = list(dict.fromkeys(map(_short, missing)))
            if len(kinds) > MOST + 1:
                kinds[MOST:] = [f"and {len(kinds) - MOST} more kinds"]
            absent = [f"not in the trace: {', '.join(kinds)}"] if kinds else []
            return [*absent, "", "nothing diverges", f"  {_unseen(compared)}"]
        lines = ["", f"first divergence: {self.path}", f"  {self.first.what}"]
        if self.first.row:
            times = f", {self.first.ratio:.3g} times what rounding explains" if self.first.ratio < float("inf") else ""
            lines += [f"  worst row {self.first.row}{times}"]
        before = [s.path for s in compared[: compared.index(self.first)] if s.status == "equal"]
        skipped = self._missing_before(self.first, before, set(missing))
        if skipped and (self.first.error or self.first.size):  # not of another shape, where nothing was compared
            lines += [f"  not in the trace, so the mistake may be there: {', '.join(skipped)}"]
        elif before:
            lines += [f"  right up to {before[-1]}"]
        return lines

    def _missing_before(self, first: Stage, right: list[str], missing: set[str]) -> list[str]:
        """The points that the trace has not, and the first divergence comes from with no point between that it has."""
        flow, layer = Flow([s.path for s in self.stages]), _layer(first.path)
        origins = flow.ancestors(first.path, missing)
        for path in right:
            if _layer(path) != layer and _angles(origins):
                # all layers turn by the same angles: where one of them is right, these are
                origins -= _angles(flow.ancestors(path, missing))
        names = [s.path for s in self.stages if s.path in origins]
        near = [_short(path) for path in names if _layer(path) in ("", layer)]
        far = [path for path in names if _layer(path) not in ("", layer)]
        also = "and " if near else ""
        return near + (far if len(far) <= MOST else [f"{also}{len(far)} points of the layers before"])

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON holds it; numbers that it has not, as infinities, become null."""
        stages = [{name: _json(x) for name, x in vars(stage).items()} for stage in self.stages]
        said = {"diverges": bool(self), "path": self.path, "what": self.first.what if self.first else ""}
        more = {"apart": list(self.apart), "mode": self.mode, "precision": self.precision}
        return {**said, **more, "stages": stages, "unknown": list(self.unknown)}


def _unseen(compared: list[Stage]) -> str:
    """Which systematic error nothing would have been said of."""
    least, most = (f(compared, key=lambda s: s.unseen) for f in (min, max))
    within = "of any size" if most.unseen == float("inf") else f"within 1 ± {most.unseen:.2g}"
    return (
        f"a factor on all of one point would not be seen within 1 ± {least.unseen:.2g} at best; at worst {within}, "
        f"at {most.path}"
    )


def _angles(paths: set[str]) -> set[str]:
    return {path for path in paths if "rotary_emb." in path}


def _layer(path: str) -> str:
    match = _LAYER.search(path)
    return match[0] if match else ""


def _short(path: str) -> str:
    """The last word of a path, or two where one says little."""
    head, _, last = path.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last == "input" or last.isdigit() else last


def _json(x: Any) -> Any:
    if isinstance(x, float):
        return x if abs(x) < float("inf") else None
    return list(x) if isinstance(x, tuple) else x
