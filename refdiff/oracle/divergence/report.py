"""A divergence for people, 80 columns wide, and for programs."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

from refdiff.oracle.trace.known_points import Flow, near_point

if TYPE_CHECKING:
    from refdiff.oracle.divergence.first_divergence import Divergence, Stage

WIDTH = 80
MOST = 4
"""So many points of other layers are named; of more, their number."""

_LAYER = re.compile(r"layers\.\d+")
_MODES = {
    "local": "each point computed from those before it in this run",
    "free": "each point computed from the inputs of the run",
    "recorded": "each point compared with the reference's numbers: its model is not here, or it had a cache",
}


def lines(found: Divergence, worst: int | None = None) -> list[str]:
    """The first point that is not right, then every point that was compared, or the `worst` of them without remarks."""
    compared = [s for s in found.stages if s.status != "missing"]
    head = f"{len(compared)} of {len(found.stages)} points compared in {found.precision}: {_MODES[found.mode]}"
    result = [line for text in found.apart for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]
    result += textwrap.wrap(head, WIDTH)
    first = found.first
    if first is None:
        if absent := list(dict.fromkeys(_short(s.path) for s in found.stages if s.status == "missing")):
            if len(absent) > MOST + 1:
                absent[MOST:] = [f"and {len(absent) - MOST} more kinds"]
            result += textwrap.wrap(f"not in the trace: {', '.join(absent)}", WIDTH, subsequent_indent="  ")
        result += ["", "nothing diverges", *textwrap.wrap(_unseen(compared), WIDTH - 2, **_INDENT)]
    else:
        result += ["", f"first divergence: {first.path}", *textwrap.wrap(first.what, WIDTH - 2, **_INDENT)]
        if first.row:
            result += [f"  worst row {first.row}, {first.ratio:.3g} times what rounding explains"]
        before = [s for s in compared[: compared.index(first)] if s.status == "equal"]
        skipped = _missing_before(found, first)
        if skipped and (first.error or first.size):  # not of another shape, where nothing was compared
            text = f"not in the trace, so the mistake may be there: {', '.join(skipped)}"
            result += textwrap.wrap(text, WIDTH - 2, **_INDENT)
        elif before:
            result += [f"  right up to {before[-1].path}"]
    result += ["", f"  {'':12}{'error/allowed':>13}  point"]
    largest = sorted(compared, key=lambda s: (s is not first, s.status != "differs", -s.ratio))[:worst]
    shown = compared if worst is None else sorted(largest, key=compared.index)
    for stage in shown:
        mark = {"equal": "equal", "equal up to": "equal up to", "differs": "DIFFERS"}[stage.status]
        result += [f"  {mark:12}{stage.ratio:>13.2g}  {stage.path}"]
        if stage.what and worst is None:
            result += textwrap.wrap(stage.what, WIDTH - 2, initial_indent=" " * 29, subsequent_indent=" " * 29)
    if hidden := len(compared) - len(shown):
        result += [f"  and {hidden} more points; --all shows them"]
    if found.unknown:
        names = ", ".join(found.unknown[:8]) + (f", … ({len(found.unknown)})" if len(found.unknown) > 8 else "")
        result += ["", *textwrap.wrap(f"no point of the reference: {names}", WIDTH)]
        missing = [stage.path for stage in found.stages if stage.status == "missing"]
        hints = [f"  {name}{hint}" for name in found.unknown[:8] if (hint := near_point(name, missing))]
        result += [line for hint in hints[:3] for line in textwrap.wrap(hint, WIDTH, subsequent_indent="    ")]
    return result


_INDENT: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "  "}


def _unseen(compared: list[Stage]) -> str:
    """Which systematic error nothing would have been said of."""
    least, most = (f(compared, key=lambda s: s.unseen) for f in (min, max))
    within = "of any size" if most.unseen == float("inf") else f"within 1 ± {most.unseen:.2g}"
    return (
        f"a factor on all of one point would not be seen within 1 ± {least.unseen:.2g} at best; at worst {within}, "
        f"at {most.path}"
    )


def _missing_before(found: Divergence, first: Stage) -> list[str]:
    """The points that the trace has not, and the first divergence comes from with no point between that it has."""
    flow, missing = Flow([s.path for s in found.stages]), {s.path for s in found.stages if s.status == "missing"}
    origins = flow.ancestors(first.path, missing)
    for stage in found.stages[: found.stages.index(first)]:
        if stage.status == "equal" and _layer(stage.path) != _layer(first.path) and _angles(origins):
            # all layers turn by the same angles: where one of them is right, these are
            origins -= _angles(flow.ancestors(stage.path, missing))
    names = [s.path for s in found.stages if s.path in origins]
    near = [_short(path) for path in names if _layer(path) in ("", _layer(first.path))]
    far = [path for path in names if _layer(path) not in ("", _layer(first.path))]
    also = "and " if near else ""
    return near + (far if len(far) <= MOST else [f"{also}{len(far)} points of the layers before"])


def _angles(paths: set[str]) -> set[str]:
    return {path for path in paths if "rotary_emb." in path}


def _layer(path: str) -> str:
    match = _LAYER.search(path)
    return match[0] if match else ""


def _short(path: str) -> str:
    """The last word of a path, or two where one says little."""
    head, _, last = path.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last == "input" or last.isdigit() else last


def as_dict(found: Divergence) -> dict[str, Any]:
    """Numbers that JSON has not, as infinities, become null."""
    stages = [{name: _json(x) for name, x in vars(stage).items()} for stage in found.stages]
    said = {"diverges": bool(found), "path": found.path, "what": found.first.what if found.first else ""}
    more = {"apart": list(found.apart), "mode": found.mode, "precision": found.precision}
    return {**said, **more, "stages": stages, "unknown": list(found.unknown)}


def _json(x: Any) -> Any:
    if isinstance(x, float):
        return x if abs(x) < float("inf") else None
    return list(x) if isinstance(x, tuple) else x
