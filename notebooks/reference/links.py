"""Does every link of the built pages lead to something? Files and places inside them; not the network."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


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


def wrong_in(folder: Path) -> list[str]:
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
