"""The article "The Differential Transformer, live": static files, which need a server and no network.

    python notebooks/reference/article.py           # serves it on this machine, until Ctrl-C
    python notebooks/reference/article.py -o FOLDER # writes it into a folder

The page is plain JavaScript in live/. Beside it stand the checkpoints that the page runs, the bundled one and the two
in small_models/, and what chapter 05 measured, reduced to what the page draws: results.json. In the site the page links
to the chapters around it. Alone it brings the text of those chapters, in chapters/.
"""

from __future__ import annotations

import argparse
import errno
import functools
import html
import http.server
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json")
SITE_ONLY = re.compile(r'<span class="site-only">.*?</span>')
SITE_LINK = re.compile(r'<a href="\.\./([^"]*)">(.*?)</a>')
CHAPTER_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'self'; img-src 'self' data:">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="../article.css">
</head>
<body>
<header><p class="byline"><a href="../index.html">The Differential Transformer, live</a>. This is the text of
<code>{source}</code> in refdiff’s repository{left_out}.</p></header>
<main><section><div class="chapter">{text}</div></section></main>
</body>
</html>
"""
TOKENIZER = HERE / "try" / "modules" / "byte_level.js"
CHECKED = "\n\n<details>\n<summary>What the tests check"
"""Where a cell's text ends for a reader: code follows that build.py of the notebooks runs."""


def write(folder: Path, *, alone: bool = True) -> None:
    """Write the page and all that it loads. `alone`: no site stands around it, so it gets the text of the chapters."""
    shutil.copytree(HERE / "live", folder, dirs_exist_ok=True)
    if alone:
        page = folder / "index.html"
        page.write_text(with_chapters(page.read_text(encoding="utf-8"), folder / "chapters"), encoding="utf-8")
    shutil.copy(TOKENIZER, folder / "tokenizer.js")
    (folder / "model").mkdir(exist_ok=True)
    for name in CHECKPOINT:
        shutil.copy(ROOT / "refdiff" / "bundled" / name, folder / "model" / name)
    no_card = shutil.ignore_patterns("README.md")
    shutil.copytree(HERE / "small_models", folder / "small_models", ignore=no_card, dirs_exist_ok=True)
    stored = json.loads((HERE.parent / "data" / "retrieval.json").read_text(encoding="utf-8"))
    (folder / "results.json").write_text(json.dumps(results(stored)), encoding="utf-8")


def with_chapters(article: str, folder: Path) -> str:
    """Write the text of each chapter that the article links to, and lead the links there; strip the other ones."""
    folder.mkdir(exist_ok=True)

    def lead(match: re.Match[str]) -> str:
        target, words = match.groups()
        source = ROOT / target.replace(".html", ".ipynb")
        if target == "card.html":
            source = ROOT / "refdiff" / "bundled" / "README.md"
        if not source.is_file():
            return words
        page = folder / Path(target).name
        page.write_text(chapter(source), encoding="utf-8")
        return f'<a href="{folder.name}/{page.name}">{words}</a>'

    return SITE_LINK.sub(lead, SITE_ONLY.sub("", article))


def chapter(source: Path) -> str:
    """The page of a chapter's text: of a notebook its Markdown, the functions it defines, and what it printed."""
    text = source.read_text(encoding="utf-8")
    left_out = ""
    if source.suffix == ".ipynb":
        left_out = ", without its pictures and most of its code"
        parts = []
        for cell in json.loads(text)["cells"]:
            written = "".join(cell["source"]).partition(CHECKED)[0]
            if cell["cell_type"] == "markdown" or written.startswith("def "):
                parts.append(written)
            parts += ["".join(output["text"]).rstrip() for output in cell.get("outputs", []) if "text" in output]
        text = "\n\n".join(parts)
    where = source.relative_to(ROOT).as_posix()
    return CHAPTER_PAGE.format(title=source.stem, source=where, left_out=left_out, text=html.escape(text))


def results(stored: dict[str, Any]) -> dict[str, Any]:
    """Of chapter 05's look-up: the values found, by kind, length of the sequences, and seed."""
    lengths = stored["experiment"]["lengths"]
    runs = sorted(stored["runs"], key=lambda run: int(run["seed"]))
    found = {
        kind: [
            [round(run["measured"][str(length)]["accuracy"], 5) for run in runs if run["wiring"] == wiring]
            for length in lengths
        ]
        for kind, wiring in (("plain", "none"), ("v1", "hf"), ("v2", "v2"))
    }
    return {"lengths": lengths, "found": found}


def serve(port: int) -> None:
    """Write the page to a temporary folder and serve it to this machine."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        with listen(port, handler) as server:
            if server.server_port != port and port:
                sys.stdout.write(f"port {port} is in use; ")
            sys.stdout.write(f"open http://127.0.0.1:{server.server_port}/ · Ctrl-C stops\n")
            sys.stdout.flush()
            server.serve_forever()


def listen(port: int, handler: Callable[..., Any]) -> http.server.ThreadingHTTPServer:
    """Return a server at a port, or at the next free one of twenty."""
    for free in range(port, port + 20):
        try:
            return http.server.ThreadingHTTPServer(("127.0.0.1", free), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise SystemExit(f"--port: {port} to {port + 19} are in use; name another")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or serve it."""
    parser = argparse.ArgumentParser("python notebooks/reference/article.py", description="Write or serve the article.")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to write it (default: serve it)")
    parser.add_argument("--port", type=int, default=8000, help="of the server; 0 takes a free one (default: 8000)")
    args = parser.parse_args(argv)
    if not 0 <= args.port < 65536:
        parser.error(f"--port: got {args.port}, expected 0 to 65535")
    if args.output and args.output.is_file():
        parser.error(f"-o: {args.output} is a file, expected a folder")
    if args.output:
        write(args.output)
        return 0
    try:
        serve(args.port)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
