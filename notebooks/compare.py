"""Is what a fresh run gives what is stored? Words are equal, numbers are near, figures and pages draw the same data."""

from __future__ import annotations

import re
from typing import Any

RELATIVE = 2e-3
"""How far two numbers may be apart, of the larger; besides, by one and a half of the last digit that is written."""

_NUMBER = re.compile(r"(?<![\w.])[-−+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])", re.IGNORECASE)


_TIMED = re.compile(r"^timed: .*$", re.MULTILINE)
"""Lines of seconds, which differ in every run."""

_PACKED = re.compile(r"[\w+/]{80,}=*")
"""The maps of a page, which are compared as what it draws."""


def differences(stored: Any, fresh: Any) -> list[str]:
    """Say where the outputs of two notebooks with the same cells differ; an empty list if nowhere."""
    found = []
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        olds, news = old.get("outputs", []), new.get("outputs", [])
        if [_kinds(o) for o in olds] != [_kinds(o) for o in news]:
            found.append(f"cell {number}: outputs are {[_kinds(o) for o in news]}, stored {[_kinds(o) for o in olds]}")
            continue
        for a, b in zip(olds, news, strict=True):
            found += [f"cell {number}: {why}" for why in (_texts(_text(a), _text(b)), _figures(a, b)) if why]
    return found


def near(a: str, b: str) -> bool:
    """Say whether two written numbers are the same: whole ones exactly, others to `RELATIVE` or their last digit."""
    a, b = a.replace("−", "-"), b.replace("−", "-")
    if a == b:
        return True
    if not ("." in a or "e" in a.lower()) or not ("." in b or "e" in b.lower()):
        return False
    unit = max(_last_digit(a), _last_digit(b))
    return abs(float(a) - float(b)) <= max(RELATIVE * max(abs(float(a)), abs(float(b))), 1.5 * unit)


def _last_digit(number: str) -> float:
    mantissa, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def _texts(a: str, b: str) -> str | None:
    words = [re.sub(r"\s+", " ", _NUMBER.sub("#", text)).strip() for text in (a, b)]
    numbers = [_NUMBER.findall(text) for text in (a, b)]
    if words[0] != words[1]:
        return f"the text is {_around(b, a)!r}, stored {_around(a, b)!r}"
    wrong = [f"{y}, stored {x}" for x, y in zip(*numbers, strict=True) if not near(x, y)]
    return f"numbers are {'; '.join(wrong[:5])}" if wrong else None


def _around(a: str, b: str) -> str:
    """The part of `a` where it begins to differ from `b`."""
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[max(at - 20, 0) : at + 60]


def _figures(a: Any, b: Any) -> str | None:
    old, new = (output.get("metadata", {}).get("drawn", {}).get("axes", []) for output in (a, b))
    if len(old) != len(new):
        return f"the figure has {len(new)} axes, stored {len(old)}"
    for number, (x, y) in enumerate(zip(old, new, strict=True)):
        if why := _texts("\n".join(x["words"]), "\n".join(y["words"])):
            return f"axes {number} of the figure: {why}"
        artists = [[_artist(artist) for artist in axes["artists"]] for axes in (x, y)]
        kinds = [[(kind, numbers[:2]) for kind, numbers in drawn] for drawn in artists]
        if kinds[0] != kinds[1]:
            return f"axes {number} of the figure draws {kinds[1]}, stored {kinds[0]}"
        for (kind, p), (_, q) in zip(*artists, strict=True):
            size = max(map(abs, p[2:] + q[2:]))
            if any(abs(s - t) > RELATIVE * size for s, t in zip(p[2:], q[2:], strict=True)):
                return f"axes {number} of the figure: {kind} of other data, {q}, stored {p}"
    return None


def _artist(line: str) -> tuple[str, list[float]]:
    kind, _, numbers = line.partition(": ")
    return kind, [float(number) for number in numbers.split()]


def _kinds(output: Any) -> list[str]:
    return [output["output_type"], *sorted(output.get("data", {}))]


def _text(output: Any) -> str:
    data = output.get("data", {})
    text = "\n".join([output.get("text", ""), *(data[kind] for kind in sorted(data) if kind.startswith("text/"))])
    return _TIMED.sub("timed", _PACKED.sub("…", text))
