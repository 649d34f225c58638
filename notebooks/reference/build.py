"""Builds the reference pages: the map of equations, notebooks, interface, command line, guides.

    python notebooks/reference/build.py                # build/reference/index.html
    python notebooks/reference/build.py -o elsewhere
    python notebooks/reference/build.py --addresses    # asks the network for every address in them; builds nothing

Sphinx makes them, and takes a warning for an error. Then every link of every page must lead to a place that is there
(`wrong_links`), and the code in them must name what exists (code_blocks.py). The pages need no network to be read.
Needs `pip install '.[docs]'`.
"""

from __future__ import annotations

import argparse
import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import article  # noqa: E402  (a folder of scripts, not a package)
import code_blocks  # noqa: E402
import docstrings  # noqa: E402
import interface  # noqa: E402
import pages  # noqa: E402
import tryout  # noqa: E402

import refdiff  # noqa: E402
from refdiff import viz  # noqa: E402

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
PICTURE = re.compile(r'(?<=[ ])src="([^":]+)"')
BY_THEME = re.compile(r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img src="([^"]+)" (alt="[^"]+")>\s*</picture>')
DRAWS = re.compile(r"(sketches|viz)\.")
"""What a drawing expression begins with."""
ASIDE = "(skip on a first reading)"
"""What the comment ends with that begins a cell of little interest."""
INK, DARK_INK = "#333333", "#cfd3d7"
"""What figures are drawn in, and what takes its place on a dark page."""
FITS = 420
"""Points of width up to which a figure is legible on a narrow page."""
WORDS = 30
"""Words of a picture that its description names."""


def written() -> dict[str, Path]:
    """The pages that files have: where each stands among the pages, and its file."""
    found = {"index.md": ROOT / "README.md", "card.md": ROOT / "refdiff" / "bundled" / "README.md"}
    for name, folder in pages.GUIDES.items():
        found |= {f"{name}/{path.name}": path for path in sorted((ROOT / folder).glob("*.md"))}
    notebooks = (path for form in ("[0-9][0-9]_*.ipynb", "guide_*.ipynb") for path in sorted(HERE.parent.glob(form)))
    return found | {f"notebooks/{path.name}": path for path in notebooks}


def assemble(folder: Path) -> None:
    """Write the sources of all pages."""
    if left_out := interface.missing():
        raise ValueError(f"{', '.join(left_out)} list public names and are on no page: add them to INTERFACE")
    files = written()
    tiny = HERE.parent / "tiny.py"  # the README and notebooks link to it
    places = {path: name for name, path in files.items()} | {tiny: "notebooks/tiny.py"}
    made = {
        "equations.md": pages.equations_page(),
        "tests.md": pages.tests_page(),
        "commands.md": pages.commands_page(),
    }
    made |= {f"interface/{name}.rst": text for name, text in interface.interface_pages().items()}
    for name, path in files.items():
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            write_drawings(text, folder / "drawn", path.stem)
        arrange = prepare if path.suffix == ".ipynb" else relinked
        made[name] = arrange(without_front_matter(text), name, path, places)
    made["index.md"] = pages.front_page(made["index.md"], [name for name in made if "/" in name])
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    shutil.copy(tiny, folder / "notebooks")
    for name, figure in interface.figures().items():
        (folder / "interface").mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "interface" / name, dpi=110, transparent=True)
    for name, text in made.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def without_front_matter(text: str) -> str:
    """A Markdown file without what a hub reads at its top."""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def relinked(text: str, name: str, path: Path, places: dict[Path, str]) -> str:
    """Rewrite a Markdown file's links to lead to pages of the site, or to where the project is published."""
    up = "../" * name.count("/")

    def target(match: re.Match[str]) -> str:
        words, link = match.groups()
        if "://" in link or link.startswith(("#", "mailto:")):
            return match[0]
        file, _, at = link.partition("#")
        where = (path.parent / file).resolve()
        if where in places:
            return f"[{words}]({up}{places[where]}{'#' + at if at else ''})"
        inside = where.relative_to(ROOT).as_posix()
        if inside.startswith("refdiff/layers/") and not inside.endswith("__init__.py"):
            return f"[{words}](#{interface.label(where.stem)})"
        if repository := os.environ.get("GITHUB_REPOSITORY"):
            return f"[{words}](https://github.com/{repository}/blob/{os.environ.get('GITHUB_SHA', 'main')}/{inside})"
        return words

    def picture(match: re.Match[str]) -> str:
        return f'src="{up}{(path.parent / match[1]).resolve().relative_to(ROOT).as_posix()}"'

    def by_theme(match: re.Match[str]) -> str:  # the theme's button chooses, not the system alone
        dark, light, alt = match.groups()
        images = [f'<img class="only-{theme}" src="{src}" {alt}>' for theme, src in (("light", light), ("dark", dark))]
        return f"<p>{''.join(images)}</p>"

    return "".join(
        part if part.startswith("```") else PICTURE.sub(picture, BY_THEME.sub(by_theme, LINK.sub(target, part)))
        for part in re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    )


def drawings(text: str) -> Iterator[tuple[str, str]]:
    """(name without the notebook's, SVG) of each figure of a notebook (JSON), in each width and theme."""
    for number, cell in enumerate(json.loads(text)["cells"]):
        for place, output in enumerate(cell.get("outputs", [])):
            for width, svg in output.get("metadata", {}).get("svg", {}).items():
                yield f"{number}-{place}-{width}-light.svg", svg
                yield f"{number}-{place}-{width}-dark.svg", svg.replace(INK, DARK_INK)


def write_drawings(text: str, folder: Path, stem: str) -> None:
    """Write the figures of a notebook as files of a folder."""
    for name, svg in drawings(text):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}-{name}").write_text(svg, encoding="utf-8")


def figure_html(output: dict[str, Any], place: str, alt: str) -> str:
    """The HTML of a figure: for each theme a picture, which chooses by the width of the page."""
    svg, pictures = output["metadata"]["svg"], []
    points = re.search(r'<svg [^>]*\bwidth="([\d.]+)pt"', svg["wide"])
    keeps = "narrow" not in svg and points is not None and float(points[1]) > FITS
    for theme in ("light", "dark"):
        narrow = f'<source media="(max-width: 46em)" srcset="{place}-narrow-{theme}.svg">' if "narrow" in svg else ""
        kind = "one-width " if keeps else ""
        image = f'<img class="{kind}only-{theme}" src="{place}-wide-{theme}.svg" alt="{html.escape(alt)}">'
        pictures.append(f"<picture>{narrow}{image}</picture>")
    return f"<p>{''.join(pictures)}</p>"


def prepare(text: str, name: str, path: Path, places: dict[Path, str]) -> str:
    """Return a notebook (JSON) with the tags and options that MyST-NB reads, and with its links as `relinked`."""
    notebook = json.loads(text)
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            cell["source"] = relinked("".join(cell["source"]), name, path, places)
            continue
        if is_plumbing("".join(cell["source"])):
            cell["metadata"]["tags"] = ["hide-input"]
        said = description(cell["outputs"])
        for place, output in enumerate(cell["outputs"]):
            if "svg" in output.get("metadata", {}):
                shown = figure_html(output, f"../drawn/{path.stem}-{number}-{place}", said)
                cell["outputs"][place] |= {"data": {"text/html": shown}, "metadata": {}}
    return json.dumps(notebook, ensure_ascii=False)


def is_plumbing(code: str) -> bool:
    """Whether a reader need not follow code: it says so, it only imports, prints and draws, or it asserts."""
    if code.partition("\n")[0].endswith(ASIDE):
        return True
    body = ast.parse(re.sub(r"^%.*", "", code, flags=re.MULTILINE)).body
    if any(isinstance(node, ast.Assert) for node in body):
        return not any(isinstance(node, ast.FunctionDef) for node in body)
    return all(map(_only_shows, body))


def _only_shows(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = ast.unparse(node.value.func)
    return called == "print" or DRAWS.match(called) is not None


def description(outputs: list[dict[str, Any]]) -> str:
    """Return the words of the pictures in a cell's outputs, each once; empty where there is no picture."""
    axes = [one for output in outputs for one in output.get("metadata", {}).get("drawn", {}).get("axes", [])]
    words = list(dict.fromkeys(" ".join(word.split()) for one in axes for word in one["words"]))
    more = ", …" if len(words) > WORDS else ""
    return f"A picture with the words: {', '.join(words[:WORDS])}{more}" if words else ""


class _Page(HTMLParser):
    """The targets that a page names, and the places that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.places: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in ("base", "form"):
            self.targets |= {given[name] for name in ("href", "src") if given.get(name)}
            self.targets |= {part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()}
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}


def wrong_links(folder: Path) -> list[str]:
    """Name each link of a folder of pages that leads nowhere, or to the network for what the page is made of."""
    read = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    wrong = []
    for path, page in read.items():
        for target in sorted(page.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if file.is_dir():
                file = file / "index.html"
            if not file.exists():
                wrong.append(f"{path.relative_to(folder.resolve())}: {target} is not there")
            elif file in read and unquote(parts.fragment) not in read[file].places:
                wrong.append(f"{path.relative_to(folder.resolve())}: {target}: that page has no such place")
    return wrong


def build(out: Path) -> list[str]:
    """Make the pages, and say what is wrong with them."""
    with tempfile.TemporaryDirectory() as scratch:
        source, new = Path(scratch) / "source", Path(scratch) / "html"
        assemble(source)
        wrong = [] if sphinx("html", source, new) else ["sphinx: see above"]
        wrong += code_blocks.wrong_in(source)
        for name, text in interface.docstrings_of_all().items():
            programs = docstrings.programs(text)
            wrong += [f"{name}: {why}" for code in programs for why in code_blocks.wrong_with("python", code)]
        if new.is_dir():
            pictures = HERE.parent / "pictures"
            if pictures.is_dir():  # pages have them as HTML, which Sphinx does not look into
                shutil.copytree(pictures, new / "notebooks" / "pictures")
            shutil.copytree(source / "drawn", new / "drawn")
            (new / "explore.html").write_text(explore(), encoding="utf-8")
            article.write(new / "live", alone=False)
            tryout.write(new / "try")
            wrong += wrong_links(new)
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(new, out)
    return wrong


def explore() -> str:
    """The page to explore attention in, of the bundled model."""
    model = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled")
    text = "There was once a king who had three sons. The eldest son was very proud, and the youngest"
    maps = viz.attention_maps(model, text)
    layer, pair = maps.most_cancelling()
    return viz.attention_page(maps, prompt=text, model="bundled", layer=layer, pair=pair)


def addresses() -> list[str]:
    """Ask the network for every address in the pages."""
    with tempfile.TemporaryDirectory() as scratch:
        assemble(Path(scratch) / "source")
        answered = sphinx("linkcheck", Path(scratch) / "source", Path(scratch) / "answers")
        return [] if answered else (Path(scratch) / "answers" / "output.txt").read_text(encoding="utf-8").splitlines()


def sphinx(builder: str, source: Path, out: Path) -> bool:
    """Run Sphinx, and say whether it had nothing to complain of."""
    options = ["-q", "--fail-on-warning", "--keep-going", "-b", builder, "-c", str(HERE), "-d", str(out) + ".read"]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(out)]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=env, check=False).returncode == 0  # noqa: S603  (this very Python)


def main(argv: Sequence[str] | None = None) -> int:
    """Build the pages; 1 if anything is wrong with them."""
    parser = argparse.ArgumentParser("python notebooks/reference/build.py", description="Build the reference pages.")
    default = ROOT / "build" / "reference"
    parser.add_argument("-o", "--output", type=Path, default=default, help="a folder (default: build/reference)")
    parser.add_argument("--addresses", action="store_true", help="check addresses on the network (default: off)")
    args = parser.parse_args(argv)
    wrong = addresses() if args.addresses else build(args.output)
    sys.stderr.write("".join(f"{line}\n" for line in wrong))
    sys.stdout.write("" if wrong or args.addresses else f"{args.output / 'index.html'}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
