"""A hub on the loopback address: it answers as huggingface.co does, as far as downloads go, and can be told to fail.

What it copies from the real one: the info of a repo at a revision with its commit and file list; small files served
in place with ETag and X-Repo-Commit; large ones (here every .safetensors) by a redirect to another host, with
X-Linked-Etag and X-Linked-Size, where ranges are served; errors with X-Error-Code; private and gated repos.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from safetensors.numpy import save

TOKEN = "hf_lookalike"


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorized: bool


@dataclass
class Repo:
    """The files of each revision, by commit; `access` is public, private or gated."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    access: str = "public"

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit with these files, and let the branch point to it."""
        sha = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


@dataclass
class Lookalike:
    """The hub: its repos, the faults that it has been told to make, and what it was asked for.

    `info` is sent in place of any repo's description, `info_headers` with it, and `headers` with what is said of files.
    `moved` sends clients on to another page of the same hub for each small file, as the real one does since 2025.
    """

    endpoint: str = ""
    cdn: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[tuple[str, str, int]] = field(default_factory=list)
    info: bytes | None = None
    info_headers: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    moved: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def repo(self, name: str, files: dict[str, bytes], access: str = "public") -> Repo:
        """Add a repo with one commit."""
        self.repos[name] = Repo(access=access)
        self.repos[name].commit(files)
        return self.repos[name]

    def fail(self, path_part: str, how: str, number: int, times: int = 1) -> None:
        """Let the next requests for a path fail.

        how: "status" number, "cut" or "reset" after a number of bytes, "endless" with so many bytes at a time,
        "drip" with a byte every so many milliseconds.
        """
        self.faults += [(path_part, how, number)] * times

    def take_fault(self, path: str, *hows: str) -> tuple[str, int] | None:
        with self.lock:
            for fault in self.faults:
                if fault[0] in path and fault[1] in hows:
                    self.faults.remove(fault)
                    return fault[1:]
        return None

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests so far whose path has this part."""
        return [request for request in self.requests if part in request.path and request.method == method]


@contextmanager
def serve() -> Iterator[Lookalike]:
    """Run a look-alike on a free port."""
    hub = Lookalike()

    class Handler(_Handler):
        lookalike = hub

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port = server.server_address[1]
    # Two names of one address, so that the redirect leaves the host, as the real one does.
    hub.endpoint, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up, or of a connection that was broken on purpose."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lookalike: Lookalike

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        hub = self.lookalike
        with hub.lock:
            hub.requests.append(Request(self.command, path, self.headers.get("Range"), authorized))
        if fault := hub.take_fault(path, "status"):
            self._send(fault[1], b"trouble", {})
        elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main", authorized)
        elif match := re.fullmatch(r"/(?:moved/)?(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3], authorized)
        elif match := re.fullmatch(r"/cdn/(.+?)/([0-9a-f]{40})/(.+)", path):
            content, disposition = hub.repos[match[1]].commits[match[2]][match[3]], f'inline; filename="{match[3]}";'
            self._send_file(content, {"Content-Disposition": disposition})
        else:
            self._error(404, "", "no such page")

    def _commit(self, name: str, revision: str, authorized: bool) -> str | None:
        repo = self.lookalike.repos.get(name)
        if repo is None or (repo.access == "private" and not authorized):
            self._error(401, "RepoNotFound", "Repository not found")
        elif repo.access == "gated" and not authorized and "/resolve/" in self.path:  # its info is open to all
            self._error(403, "GatedRepo", "Access to this repo is restricted")
        elif (sha := repo.branches.get(revision, revision)) not in repo.commits:
            self._error(404, "RevisionNotFound", "Invalid rev id")
        else:
            return sha
        return None

    def _info(self, name: str, revision: str, authorized: bool) -> None:
        if sha := self._commit(name, revision, authorized):
            siblings = [{"rfilename": file} for file in self.lookalike.repos[name].commits[sha]]
            info = {"_id": "1", "id": name, "modelId": name, "sha": sha, "private": False, "siblings": siblings}
            self._send(
                200,
                self.lookalike.info or json.dumps(info).encode(),
                {"Content-Type": "application/json", **self.lookalike.info_headers},
            )

    def _resolve(self, name: str, revision: str, file: str, authorized: bool) -> None:
        sha = self._commit(name, revision, authorized)
        if sha is None:
            return
        content = self.lookalike.repos[name].commits[sha].get(file)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        elif self.lookalike.moved and "/moved/" not in self.path and not file.endswith(".safetensors"):
            location = f"/moved/{name}/resolve/{sha}/{file}"
            self._send(307, b"Temporary Redirect", {"X-Repo-Commit": sha, "ETag": 'W/"12-x"', "Location": location})
        elif file.endswith(".safetensors"):
            headers = {
                "X-Repo-Commit": sha,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.lookalike.cdn}/cdn/{name}/{sha}/{file}",
            }
            self._send(302, b"Found", headers)
        else:
            etag = hashlib.sha1(content).hexdigest()
            self._send_file(content, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'})

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        status, total = 200, len(content)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            begin, end = int(wanted[1]), min(int(wanted[2] or total), total - 1) + 1
            if begin >= total:
                self._send(416, b"", {"Content-Range": f"bytes */{total}"})
                return
            content, status = content[begin:end], 206
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{total}"}
        self._send(status, content, {**headers, "Accept-Ranges": "bytes"})

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        if "/resolve/" in self.path:
            headers = {**headers, **self.lookalike.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        endless = None if self.command == "HEAD" else self.lookalike.take_fault(self.path, "endless")
        if endless is None and "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if drip := self.lookalike.take_fault(self.path, "drip"):
            while not threading.Event().wait(drip[1] / 1000):
                self.wfile.write(b"x")
        while endless:
            self.wfile.write(b"x" * endless[1])
        fault = self.lookalike.take_fault(self.path, "cut", "reset")
        if fault is None or len(content) <= fault[1]:
            self.wfile.write(content)
            return
        self.wfile.write(content[: fault[1]])
        self.wfile.flush()
        self.close_connection = True
        if fault[0] == "reset":
            # Closing with a linger time of zero sends a reset instead of a proper end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def tensors(seed: int, size: int = 5000) -> bytes:
    return save({f"t{seed}": np.random.default_rng(seed).normal(size=size).astype(np.float32)})


def model_files(**more: bytes) -> dict[str, bytes]:
    """The files of the repo ai/model."""
    return {
        "README.md": b"A model.",
        "config.json": b'{"model_type": "diffllama"}',
        "generation_config.json": b"{}",
        "model.safetensors": tensors(1),
        "pytorch_model.bin": b"\x80\x02never",
        "tokenizer.json": b"{}",
        **more,
    }
