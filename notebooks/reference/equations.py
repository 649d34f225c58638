"""Docstrings have their equations in plain characters, λ = exp(λ_q1 · λ_k1) − …; this makes LaTeX of them, for pages.

A line is words and mathematics in any mixture. What is a word: two letters or more, with no index or power on them,
that nothing is applied to. The rest of the line is read as it stands, symbol by symbol.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SYMBOLS = {
    **{c: c for c in "=+-/*'"},
    "−": "-", "·": r"\cdot ", "⊙": r"\odot ", "∘": r"\circ ", "×": r"\times ", "±": r"\pm ", "//": r"\mathbin{/\!/}",
    "≤": r"\le ", "≥": r"\ge ", "<": r"\lt ", ">": r"\gt ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ",
    "→": r"\to ", "->": r"\to ", "…": r"\ldots ", "...": r"\ldots ", "∞": r"\infty ", "|": r"\vert ",
    "∂": r"\partial ", "Σ": r"\sum ", "√": r"\sqrt ",
}  # fmt: skip
_LETTERS = """
    α alpha  β beta  γ gamma  δ delta  ε varepsilon  ζ zeta  η eta  θ theta  ι iota  κ kappa  λ lambda  μ mu  ν nu
    ξ xi  π pi  ρ rho  σ sigma  τ tau  υ upsilon  φ varphi  χ chi  ψ psi  ω omega
    Γ Gamma  Δ Delta  Θ Theta  Λ Lambda  Ξ Xi  Π Pi  Φ Phi  Ψ Psi  Ω Omega
"""
GREEK = dict(zip(_LETTERS.split()[::2], _LETTERS.split()[1::2], strict=True))
LOW = dict(zip("₀₁₂₃₄₅₆₇₈₉ₜᵢⱼ", "0123456789tij", strict=True))
HIGH = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵀⁿ", [*"0123456789-", r"\top ", "n"], strict=True))
FUNCTIONS = {"cos", "sin", "exp", "log"}

_NAME = r"[A-Za-zα-ωΓΔΘΛΞΠΦΨΩ][A-Za-zα-ω\u0302]*"
_ONTO = rf"(?:[{''.join(LOW)}]+|[{''.join(HIGH)}]+|[_^]\{{[^{{}}]*\}}|\^\([^()]*\)|_[A-Za-zα-ω0-9]+|\^[A-Za-z0-9−]+|′)"
_ATOM = re.compile(
    rf"\s*(?:(?P<code>`[^`]*`)|(?P<quoted>\"[^\"]*\")|(?P<name>(?:{_NAME}|Σ|\d+(?:\.\d+)?(?={_ONTO})){_ONTO}*\d*(?:'s\b|(?<=\w)-\w[\w-]*)?)"
    rf"|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)|(?P<open>[(\[])|(?P<close>[)\]]{_ONTO}*)|(?P<symbol>->|//|\.\.\.|[−·⊙∂Σ≤≥≠→…∞≈×∈<>=+\-/√|*±∘])|(?P<mark>['’]s\b|.))",
    re.DOTALL,
)


@dataclass
class _Part:
    """One atom, or what stands between brackets: with `inner`, `text` is the opening and `close` the closing one."""

    kind: str
    text: str
    spaced: bool
    inner: list[_Part] = field(default_factory=list)
    close: str = ""


def typeset(line: str) -> list[tuple[str, str]]:
    """Split a line into ("text", words), ("code", what stood in backticks) and ("math", LaTeX), in its order."""
    parts = _read(iter(_ATOM.finditer(line.strip())))
    pieces: list[tuple[str, str]] = []
    for at, part in enumerate(parts):
        _set(parts, at, part, pieces)
    return _joined(pieces)


def to_rst(line: str) -> str:
    """A line for reStructuredText, its equations as roles, which stand apart from the words beside them."""
    made = ""
    for kind, text in typeset(line):
        is_role = kind != "text"
        if made and ((is_role and made[-1] not in " ([\"'") or (made[-1] == "`" and text[0] not in " .,;:)]\"'!?-")):
            made += "\\ "
        made += {"math": f":math:`{_one_space(text)}`", "code": f"`{text}`"}.get(kind, text)
    return made.strip()


def to_markdown(line: str) -> str:
    """A line for MyST, its equations between dollars."""
    made = [{"math": f"${_one_space(text)}$", "code": f"`{text}`"}.get(kind, text) for kind, text in typeset(line)]
    return "".join(made).strip()


def _one_space(latex: str) -> str:
    return re.sub(" +", " ", latex).strip()


def _read(atoms: Iterator[re.Match[str]]) -> list[_Part]:
    """The parts up to a closing bracket or the end."""
    parts: list[_Part] = []
    for match in atoms:
        kind = match.lastgroup
        spaced = match[0] != match[kind]
        if kind == "open":
            inner = _read(atoms)
            close = inner.pop() if inner and inner[-1].kind == "close" else _Part("close", "", False)
            parts.append(_Part("group", match[kind], spaced, inner, close.text))
        else:
            parts.append(_Part(str(kind), match[kind], spaced))
            if kind == "close":
                break
            _make_fraction(parts)
    return _with_roots(parts)


def _make_fraction(parts: list[_Part]) -> None:
    """Put ∂L/∂x, if that is what the parts end in, into one of them."""
    if [p.text if p.kind == "symbol" else p.kind for p in parts[-5:]] == ["∂", "name", "/", "∂", "name"]:
        start, over, _, _, under = parts[-5:]
        parts[-5:] = [_Part("fraction", f"{over.text}/{under.text}", start.spaced)]


def _with_roots(parts: list[_Part]) -> list[_Part]:
    """The parts, each √ in one with what it is taken of: a bracket, a name, or a number and what touches it."""
    made: list[_Part] = []
    rest = iter(parts)
    for part in rest:
        made.append(part)
        if part.text == "√" and part.kind == "symbol":
            under = [next(rest)]
            if under[0].kind == "number" and (after := parts[parts.index(under[0]) + 1 :]) and after[0].kind == "name":
                under += [next(rest)] if not after[0].spaced else []
            inner = under[0].inner if under[0].kind == "group" else under
            made[-1] = _Part("root", "√", part.spaced, inner)
    return made


def _is_word(parts: list[_Part], at: int) -> bool:
    part = parts[at]
    after = parts[at + 1] if at + 1 < len(parts) else None
    before = parts[at - 1] if at else None
    if not re.fullmatch(r"[A-Za-z][A-Za-z-]*\d*(?:'s)?", part.text):
        return False
    if part.text in FUNCTIONS or (after is not None and after.kind == "group" and not after.spaced):
        return False
    if (before is not None and before.text in ("·", "⊙")) or (after is not None and after.text == "="):
        return False
    if len(part.text) == 1:  # the article, or a variable of that name
        follows = after is not None and after.kind == "name" and _is_word(parts, at + 1)
        return part.text in "aA" and follows and not (before is not None and before.kind in ("symbol", "number"))
    return True


def _is_math(part: _Part) -> bool:
    """Whether all that stands between these brackets is mathematics."""
    if any(p.kind in ("code", "quoted") for p in part.inner):
        return False
    names = [at for at, p in enumerate(part.inner) if p.kind == "name"]
    if any(_is_word(part.inner, at) for at in names):
        return False
    return all(p.kind != "mark" or p.text in ",;" for p in part.inner)


def _set(parts: list[_Part], at: int, part: _Part, pieces: list[tuple[str, str]]) -> None:
    """Append what a part becomes at the level of words."""
    gap = " " if part.spaced else ""
    before = parts[at - 1] if at else None
    called = before is not None and not part.spaced and before.kind in ("name", "group") and part.kind == "group"
    if part.kind in ("code", "quoted"):
        pieces.append(("text", gap))
        pieces.append(("code", part.text.strip("`")) if part.kind == "code" else ("text", part.text))
    elif part.kind == "group":
        if (called and not _is_word(parts, at - 1)) or _is_math(part):
            pieces.append(("math", gap + _latex_group(part)))
            return
        pieces.append(("text", gap + part.text))
        for inside, one in enumerate(part.inner):
            _set(part.inner, inside, one, pieces)
        pieces.append(("text", part.close))
    elif part.kind == "name":
        pieces.append(("text", gap + part.text) if _is_word(parts, at) else ("math", gap + _latex_name(part.text)))
    elif part.kind in ("symbol", "fraction", "root"):
        pieces.append(("math", gap + _latex(part)))
    elif part.kind == "number":
        pieces.append(("number", gap + part.text))
    else:
        pieces.append(("text", gap + part.text))


def _joined(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbors of a kind in one; a number belongs to the mathematics that it touches, or else to the words."""
    for at, (kind, text) in enumerate(pieces):
        if kind == "number":
            sides = [pieces[i][0] for i in (at - 1, at + 1) if 0 <= i < len(pieces)]
            pieces[at] = ("math" if "math" in sides else "text", text)
    joined: list[tuple[str, str]] = []
    for kind, text in pieces:
        if joined and kind == joined[-1][0] and kind in ("math", "text"):
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            if kind == "math" and text.startswith(" "):
                joined.append(("text", " "))
            joined.append((kind, text))
    made: list[tuple[str, str]] = []
    for kind, text in joined:  # a space that was made above may follow words
        if made and kind == made[-1][0] == "text":
            made[-1] = (kind, made[-1][1] + text)
        elif text:
            made.append((kind, text))
    return made


def _latex_group(part: _Part) -> str:
    close, onto = (part.close[:1] or "."), part.close[1:]
    return f"\\left{part.text}{_latex_all(part.inner)}\\right{close}{_latex_onto(onto)}"


def _latex_all(parts: list[_Part]) -> str:
    inner = []
    for at, one in enumerate(parts):
        gap = " " if one.spaced else ""
        if one.kind == "group":
            inner.append(gap + _latex_group(one))
        elif one.kind == "name":
            inner.append(gap + _latex_name(one.text))
        elif one.kind in ("symbol", "fraction", "root"):
            inner.append(gap + _latex(one))
        else:
            inner.append((r",\; " if one.text in ",;" and at else gap + one.text) if one.text != ";" else r";\; ")
    return "".join(inner)


def _latex(part: _Part) -> str:
    if part.kind == "symbol":
        return SYMBOLS[part.text]
    if part.kind == "root":
        return rf"\sqrt{{{_latex_all(part.inner)}}}"
    over, under = part.text.split("/")
    fraction = rf"\frac{{\partial {_latex_name(over)}}}{{\partial {_latex_name(under.rstrip('ᵀ'))}}}"
    return rf"\left({fraction}\right)^\top " if under.endswith("ᵀ") else fraction


def _latex_name(text: str) -> str:
    base = re.match(rf"{_NAME}|Σ|[\d.]+", text)[0]  # type: ignore[index]
    onto = text.removeprefix(base)
    if re.fullmatch(r"[a-z]{3,}", base) and re.fullmatch(r"_[a-z]{2,}", onto):
        return rf"\mathtt{{{base}\{onto}}}"  # a name in the code, ignore_index
    return _latex_letters(base) + _latex_onto(onto)


def _latex_onto(onto: str) -> str:
    """Indices and powers."""
    made = ""
    for piece in re.findall(_ONTO, onto):
        if piece[0] in LOW:
            made += "_{" + "".join(LOW[c] for c in piece) + "}"
        elif piece[0] in HIGH:
            made += "^{" + "".join(HIGH[c] for c in piece).strip() + "}"
        elif piece == "′":
            made += "'"
        else:
            made += f"{piece[0]}{{{_index(piece[1:].strip('{}()'))}}}"
    return made


def _index(text: str) -> str:
    if re.fullmatch(r"[A-Za-z]{3,}", text):  # δ_su has two indices, λ_init a word
        return rf"\mathrm{{{text}}}"
    return "".join(SYMBOLS.get(c, "\\" + GREEK[c] + " " if c in GREEK else c) for c in text)


def _latex_letters(base: str) -> str:
    if "\u0302" in base:
        return rf"\hat{{{base[0]}}}"
    if base == "Σ":
        return r"\sum"
    if len(base) > 1 and base.isascii():
        return f"\\{base} " if base in ("cos", "sin", "exp", "log") else rf"\operatorname{{{base}}}"
    return "".join(f"\\{GREEK[c]} " if c in GREEK else c for c in base)
