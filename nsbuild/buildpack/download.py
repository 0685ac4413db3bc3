"""Downloading an archive over HTTP: bounded, resumed where it broke off, and not again when it has not changed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsbuild.buildpack.git import Unreachable
from nsbuild.buildpack.reference import Reference, without_secrets
from nsbuild.errors import Refused, UsageError
from nsbuild.tree import write_atomic

if TYPE_CHECKING:
    import requests

Progress = Callable[[str, int, int | None], None]
"""Called with what is fetched (as the user may see it), bytes so far, and bytes in all where that is known."""

_BLOCK = 256 * 1024
_TOLD_EVERY = 0.1
_REDIRECTS = 10


@dataclass(frozen=True)
class Limits:
    """How long to wait for a connection, for the next bytes, and for all of them (seconds); how much to take (bytes);
    how often to try, and how long to pause before the second time (seconds).
    """

    connect: float = 10.0
    read: float = 30.0
    total: float = 900.0
    max_bytes: int = 512 << 20
    attempts: int = 4
    pause: float = 0.5


@dataclass(frozen=True)
class Validators:
    """What a server calls one version of a file."""

    etag: str = ""
    last_modified: str = ""

    @property
    def range_condition(self) -> str:
        """For If-Range, which wants more than that two versions are much the same."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _BrokenOff(Exception):
    """The connection has ended too early; what came is kept."""


def download(
    reference: Reference, part: Path, known: Validators, limits: Limits, progress: Progress
) -> Validators | None:
    """Download the URL to the file `part`, going on where an earlier, interrupted download of it has stopped.

    None when the server says that it still is what `known` tells. `part` stays after a failure, to go on with next
    time. Proxies, certificates and .netrc are those of the environment.

    Raises Unreachable when the network, or the server, cannot serve; UsageError when the server says that there is no
    such thing or sends a page; Refused when it is larger than allowed, or a redirect leads out of https.
    """
    fetched = _Fetch(reference, part, limits, progress)
    with fetched.session:
        for attempt in range(1, limits.attempts + 1):
            had = fetched.size
            try:
                return fetched.once(known)
            except _BrokenOff as broken:
                if attempt == limits.attempts or (attempt > 1 and fetched.size <= had):
                    raise Unreachable(
                        f"The buildpack {reference.shown} cannot be downloaded: {broken}.",
                        "Try again: it goes on from there." if fetched.size else "Look at the network; try again.",
                    ) from broken
                time.sleep(limits.pause * attempt)
    raise AssertionError("unreachable")


class _Fetch:
    """One URL on its way to one file."""

    def __init__(self, reference: Reference, part: Path, limits: Limits, progress: Progress) -> None:
        self.reference = reference
        self.part = part
        self.limits = limits
        self.progress = progress
        self.session = _session()
        self.until = time.monotonic() + limits.total

    @property
    def size(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def _about(self) -> Path:
        """What is known about the part."""
        return self.part.with_name(f"{self.part.name}.json")

    def once(self, known: Validators) -> Validators | None:
        """One request. Raises _BrokenOff when it ended too early."""
        import requests
        from urllib3.exceptions import HTTPError

        # As it is on the server's disk: what is digested and unpacked must not have been unpacked on the way.
        headers = {"Accept-Encoding": "identity", "Accept": "*/*"}
        part = self._condition()
        if part is not None:
            headers |= {"Range": f"bytes={self.size}-", "If-Range": part.range_condition}
        elif known.etag:
            headers["If-None-Match"] = known.etag
        elif known.last_modified:
            headers["If-Modified-Since"] = known.last_modified
        try:
            with self.session.get(
                self.reference.location,
                headers=headers,
                stream=True,
                timeout=(self.limits.connect, self.limits.read),
            ) as response:
                return self._received(response, resuming=part is not None)
        except requests.TooManyRedirects as error:
            raise UsageError(
                f"The buildpack {self.reference.shown} cannot be downloaded: it redirects without end.",
                "Mend the URL.",
            ) from error
        except (requests.RequestException, HTTPError) as error:
            raise _BrokenOff(_reason(error, self.size)) from error

    def _condition(self) -> Validators | None:
        """The validators of the part, when there is one that a server can be asked to go on with."""
        try:
            about = Validators(**json.loads(self._about.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return about if self.size and about.range_condition else None

    def _received(self, response: requests.Response, *, resuming: bool) -> Validators | None:
        status = response.status_code
        if status == 304:
            return None
        if status == 416 and resuming:
            self._forget()
            raise _BrokenOff("the server has another version now")
        if status >= 500 or status in (408, 429):
            raise Unreachable(
                f"The buildpack {self.reference.shown} cannot be downloaded: the server answers {status}.",
                "Try again later.",
            )
        if status not in (200, 206):
            raise UsageError(
                f"The buildpack {self.reference.shown} cannot be downloaded: the server answers {status}"
                f" {response.reason or ''}".rstrip()
                + ".",
                "Mend the URL, or your access to it.",
            )
        if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
            raise UsageError(
                f"The buildpack {self.reference.shown} is no archive: the server sent a web page (HTML).",
                "Give the URL of the archive itself.",
            )
        resumed = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {self.size}-")
        if status == 206 and not resumed:
            self._forget()
            raise _BrokenOff("the server sent another part than the one asked for")
        validators = Validators(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
        length = response.headers.get("Content-Length", "")
        if not resumed:
            self._forget()
        total = self.size + int(length) if length.isdigit() else None
        self._check(total or 0)
        write_atomic(str(self._about), json.dumps(asdict(validators)).encode(), 0o600)
        self._write(response, total)
        return validators

    def _write(self, response: requests.Response, total: int | None) -> None:
        told = 0.0
        with self.part.open("ab") as file:
            done = file.tell()
            for block in response.raw.stream(_BLOCK, decode_content=False):
                file.write(block)
                done += len(block)
                self._check(done)
                now = time.monotonic()
                if now - told >= _TOLD_EVERY or done == total:
                    told = now
                    self.progress(self.reference.shown, done, total)
                if now > self.until:
                    raise Unreachable(
                        f"The buildpack {self.reference.shown} takes longer than {self.limits.total:g} seconds.",
                        "Try again: it goes on from there.",
                    )
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done != total:
            raise _BrokenOff(f"it broke off after {done} of {total} bytes")

    def _check(self, size: int) -> None:
        if size > self.limits.max_bytes:
            self._forget()
            raise Refused(
                f"The buildpack {self.reference.shown} is larger than {self.limits.max_bytes >> 20} MB.",
                "Give a buildpack: none is that large.",
            )

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)


def _session() -> requests.Session:
    import requests

    class Session(requests.Session):
        """Follows redirects, but from https to nothing that anybody on the way could change."""

        def get_redirect_target(self, resp: requests.Response) -> str | None:
            target: str | None = super().get_redirect_target(resp)
            if target and resp.url.startswith("https:") and target.lower().startswith("http:"):
                raise Refused(
                    f"{without_secrets(resp.url)} redirects from https to {without_secrets(target)}.",
                    "Give a URL that stays with https.",
                )
            return target

    session = Session()
    session.max_redirects = _REDIRECTS
    return session


def _reason(error: Exception, size: int) -> str:
    """What went wrong, without the objects that the libraries put into their messages."""
    import requests

    inner: Any = error
    while inner.args and isinstance(inner.args[0], Exception):
        inner = inner.args[0]
    reason = getattr(inner, "reason", None) or inner
    if isinstance(error, requests.exceptions.SSLError):
        return f"its certificate is not accepted ({str(reason)[:200]})"
    if isinstance(error, requests.Timeout) or "timed out" in str(reason):
        return f"the server said nothing for too long, after {size} bytes"
    if isinstance(error, requests.ConnectionError) and not size:
        return f"there is no connection ({str(reason).rpartition(': ')[2][:200]})"
    return f"it broke off after {size} bytes"
