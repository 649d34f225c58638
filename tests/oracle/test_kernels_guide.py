"""The tables of the guide for authors of kernels: inputs of each preset, profiles, and fields of a recipe."""

from __future__ import annotations

import re
from pathlib import Path

from refdiff.oracle import Recipe, cases
from refdiff.oracle.cases.fixed import PROFILES, small_spec
from refdiff.oracle.spec.presets import PRESETS

GUIDE = Path(__file__).parents[2] / "notebooks" / "reference" / "guides" / "kernels.md"


def input_row(preset: str) -> str:
    """The table's row: sizes of q, k, v, other inputs grouped by size, and the output."""
    spec = small_spec(preset)
    inputs = cases("natural", 0, spec=spec, batch=2, queries=5, keys=7)[0].inputs
    sizes = {name: "×".join(map(str, x.shape)) for name, x in inputs.items()}
    main, other = [sizes.pop(name) for name in "qkv"], dict[str, list[str]]()
    for name, size in sizes.items():
        other.setdefault(size, []).append(f"`{name}`")
    rest = ", ".join(f"{', '.join(names)} {size}" for size, names in other.items()) or "none"
    return f"| `{preset}` | {' | '.join(main)} | {rest} | 2×{spec.heads}×5×{spec.out_dim} |"


def test_names_and_shapes() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    section = text[text.index("### Names and shapes") : text.index("### Motif-3")]
    lines = section.splitlines()
    at = lines.index("|---|---|---|---|---|---|") + 1
    assert lines[at : at + len(PRESETS) + 1] == [*map(input_row, PRESETS), ""]
    listed = section[section.index("The profiles of") : section.index("A `Recipe`")]
    assert re.findall(r"`(\w+)`", listed) == ["cases", *PROFILES]
    fields = re.findall(r"^\| `(\w+)` \| .* \| `(\w+)` \|$", section, re.MULTILINE)
    assert dict(fields) == Recipe("bfloat16").to_dict()
