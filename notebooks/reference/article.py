"""The article "The Differential Transformer, live": static files, which need a server and no network.

    python notebooks/reference/article.py           # serves it on this machine, until Ctrl-C
    python notebooks/reference/article.py FOLDER    # writes it into a folder

The page is plain JavaScript in live/. Beside it stand the checkpoints that the page runs, the bundled one and the twins
of twins/, and what notebook 09 measured, reduced to what the page draws: results.json and training.json.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json")
SITE_LINK = re.compile(r'<a href="\.\./[^"]*">(.*?)</a>')
TOKENIZER = ROOT / "refdiff" / "generation" / "tokenizer" / "byte_level.js"


def write(folder: Path, *, alone: bool = True) -> None:
    """Write the page and all that it loads. `alone` strips the links to the site around it."""
    shutil.copytree(HERE / "live", folder, dirs_exist_ok=True)
    if alone:
        page = folder / "index.html"
        page.write_text(SITE_LINK.sub(r"\1", page.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copy(TOKENIZER, folder / "tokenizer.js")
    (folder / "model").mkdir(exist_ok=True)
    for name in CHECKPOINT:
        shutil.copy(ROOT / "refdiff" / "bundled" / name, folder / "model" / name)
    shutil.copytree(HERE / "twins", folder / "twins", ignore=shutil.ignore_patterns("README.md"), dirs_exist_ok=True)
    stored = json.loads((HERE.parent / "data" / "retrieval.json").read_text(encoding="utf-8"))
    (folder / "results.json").write_text(json.dumps(results(stored)), encoding="utf-8")
    stored = json.loads((HERE.parent / "data" / "variants.json").read_text(encoding="utf-8"))
    (folder / "training.json").write_text(json.dumps(training(stored)), encoding="utf-8")


def results(stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Reduce notebook 09's runs to one number for each seed, kind and measure."""
    longest = str(max(stored["experiment"]["train_lengths"]))

    def numbers(measure: Any) -> dict[str, list[float]]:
        kinds = {"plain": "none", "v1": "hf", "v2": "v2"}
        runs = sorted(stored["runs"], key=lambda run: int(run["seed"]))
        return {
            kind: [round(float(measure(run["measured"])), 5) for run in runs if run["wiring"] == wiring]
            for kind, wiring in kinds.items()
        }

    def last_layer(group: str) -> dict[str, list[float]]:
        return numbers(lambda m: sum(m[longest]["heads"][group][-1]) / len(m[longest]["heads"][group][-1]))

    return [
        {"name": "noise", "wanted": "less", "numbers": last_layer("noise")},
        {"name": "answer", "wanted": "more", "numbers": last_layer("answer")},
        {"name": "accuracy, short rows", "wanted": "more", "numbers": numbers(lambda m: m["32"]["accuracy"])},
        {"name": "accuracy, rows of 64", "wanted": "more", "numbers": numbers(lambda m: m["64"]["accuracy"])},
        {"name": "accuracy, long rows", "wanted": "more", "numbers": numbers(lambda m: m[longest]["accuracy"])},
    ]


def training(stored: dict[str, Any]) -> dict[str, Any]:
    """Of notebook 09's text models at the common rate: λ and the maps' correlation by kind, seed, moment and layer."""
    rate = stored["runs"][0]["rate"]
    kinds: dict[str, dict[str, list[Any]]] = {}
    for run in stored["runs"]:
        if run["rate"] == rate:
            kept = kinds.setdefault(run["kind"], {"lambda": [], "correlation": []})
            kept["lambda"].append(run["lambda"])
            kept["correlation"].append(run["own"])
    return {"moments": stored["moments"], "kinds": kinds}


def serve(port: int) -> None:
    """Write the page to a temporary folder and serve it to this machine."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
            sys.stdout.write(f"http://127.0.0.1:{server.server_port}/\n")
            sys.stdout.flush()
            server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or serve it."""
    parser = argparse.ArgumentParser("python notebooks/reference/article.py", description="Write or serve the article.")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write it (default: serve it)")
    parser.add_argument("--port", type=int, default=8000, help="of the server; 0 takes a free one (default: 8000)")
    args = parser.parse_args(argv)
    if args.folder:
        write(args.folder)
        return 0
    try:
        serve(args.port)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
