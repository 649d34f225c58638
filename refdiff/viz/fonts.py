"""Letters of all scripts on axes: the fonts that are installed, and code points where none of them has a letter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

OTHERS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "IPAexGothic",
    "Hiragino Sans",
    "Yu Gothic",
    "Microsoft YaHei",
    "Noto Sans",
    "Segoe UI",
    "Arial Unicode MS",
)
"""Asked after matplotlib's own font, in this order, where they are installed."""


def in_fonts(names: Iterable[str], others: Sequence[str] = OTHERS) -> tuple[list[str], list[str]]:
    r"""Return the font families that these names need, and the names with \u… in place of letters that none has."""
    import matplotlib
    from matplotlib import font_manager

    names = list(names)
    families = [str(matplotlib.rcParams["font.sans-serif"][0])]
    missing = {letter for name in names for letter in name}
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    chosen: list[str] = []
    for family in dict.fromkeys([*families, *others]):
        if not missing or family not in installed:
            continue
        # of a family's faces the one that is drawn: an extra light one may lack letters
        known = font_manager.get_font(font_manager.findfont(family, fallback_to_default=False)).get_charmap()
        found = {letter for letter in missing if ord(letter) in known}
        if found or not chosen:
            chosen.append(family)
        missing -= found
    return chosen or families, ["".join(_escaped(x) if x in missing else x for x in name) for name in names]


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
