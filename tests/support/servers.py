"""Loopback servers that buildpacks are fetched from, and what they serve."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

COMPILE = "#!/bin/bash\necho compiled by {}\n"


def archive(files: Mapping[str, str | bytes], *, top: str = "", members: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """A .tgz of executables, below the directory `top`, and of other members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(f"{top}/{name}" if top else name)
            info.size, info.mode = len(data), 0o755
            made.addfile(info, io.BytesIO(data))
        for member in members:
            made.addfile(member)
    return out.getvalue()


def pack(name: str = "one", **more: str | bytes) -> dict[str, str | bytes]:
    """The files of a buildpack that says its name."""
    return {"bin/compile": COMPILE.format(name), "bin/detect": f"#!/bin/sh\necho {name}\n", **more}


@dataclass
class Page:
    """What is at a path. With `die_after` the connection ends after so many bytes, as often as `deaths` says."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = ""
    die_after: int = 0
    deaths: int = 0
    wait: float = 0.0
    ranges: bool = True
    claimed: int = 0
    """The Content-Length that is a lie."""


class Server:
    """Serves `pages`; `asked` are (path, headers) of every request, `sent` their statuses."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.sent: list[int] = []
        self.ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, path: str, body: bytes, **more: object) -> str:
        self.pages[path] = Page(body, **more)  # type: ignore[arg-type]
        return self.url + path

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: object) -> None:
        self.site = server
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.site.asked.append((self.path, dict(self.headers)))
        page = self.site.pages.get(path)
        if page is None:
            self._start(404, {"Content-Length": "0"})
            return
        if page.etag and self.headers.get("If-None-Match") == page.etag:
            self._start(304, {"ETag": page.etag})
            return
        body, status, headers = page.body, page.status, dict(page.headers)
        if page.etag:
            headers["ETag"] = page.etag
        asked = self.headers.get("Range", "")
        if asked and page.ranges and self.headers.get("If-Range") == page.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        headers.setdefault("Content-Length", str(page.claimed or len(body)))
        self._start(status, headers)
        if page.wait:
            self.site.ended.wait(page.wait)
        if page.die_after and page.deaths:
            page.deaths -= 1
            body = body[: page.die_after]
            self.close_connection = True
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.site.sent.append(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()


class Repository:
    """A git repository of one buildpack, and how to change it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *words: str) -> str:
        done = subprocess.run(
            [
                "git",
                "-c",
                "user.name=T",
                "-c",
                "user.email=t@example.org",
                "-c",
                "protocol.file.allow=always",
                *words,
            ],
            cwd=self.path,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, **files: str | bytes) -> str:
        """A commit of these files; its name. `/` in a name is written `__`."""
        for name, content in files.items():
            path = self.path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            path.chmod(0o755)
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", "change")
        return self.git("rev-parse", "HEAD")

    def dumb(self, server: Server, path: str = "/pack.git") -> str:
        """Publish it over HTTP, as plain files: a server that can give no part of the history."""
        self.git("update-server-info")
        for name in [name for name in server.pages if name.startswith(f"{path}/")]:
            del server.pages[name]
        for file in (self.path / ".git").rglob("*"):
            if file.is_file():
                server.put(f"{path}/{file.relative_to(self.path / '.git')}", file.read_bytes())
        return server.url + path


@contextmanager
def git_daemon(base: Path) -> Iterator[str]:
    """git's own server of everything below a directory: git://"""
    words = ["git", "daemon", "--inetd", "--export-all", f"--base-path={base}", str(base)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(base)}

    class Connection(BaseRequestHandler):
        def handle(self) -> None:
            call = {"stdin": self.request, "stdout": self.request, "stderr": subprocess.DEVNULL}
            subprocess.run(words, env=environ, check=False, **call)

    with ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"git://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
