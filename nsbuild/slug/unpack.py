"""A slug of any format as a directory, whatever is in it: it is unpacked in a sandbox that has nothing else."""

from __future__ import annotations

import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from nsbuild.errors import Interrupted, Refused, UsageError, said_full
from nsbuild.interrupts import ENDING
from nsbuild.sandbox import Bind, Launcher, Outcome, compose, read_host
from nsbuild.slug.boot import RUN_PATH
from nsbuild.slug.formats import format_of, read_json
from nsbuild.slug.oci import RUN_PATH_LABEL
from nsbuild.tree import remove_tree
from nsbuild.tree.copy import copy_contents
from nsbuild.workspace import Workspace

_PIECE = 1 << 20
MOST = 64 << 30
"""Bytes that a compressed tar may unpack to: a bomb of a few MB would fill any disk."""
_SHORT = ": Wrote only "
"""All that GNU tar says of a disk that is full in the middle of a write: write_error_details of paxutils."""
_APP, _IMAGE = "/app", "/tmp/slug.squashfs"


def unpack(slug: Path, work: Workspace) -> None:
    """Unpack `slug`, which is no plain directory, into the workspace's empty `app`.

    Nothing of it can get anywhere else, and its files belong to the workspace's user, with the modes they have in
    the slug. Raises UsageError for what is no slug, is truncated or corrupt, or leads outside, Refused when there is
    no room, LaunchError, OSError.
    """
    format_ = format_of(slug)
    with Launcher() as launcher:
        if format_ == "squashfs":
            _unsquash(slug, work, launcher)
        elif format_ == "oci":
            layer, strip = _layer(slug)
            _untar(slug, layer, _gunzipped, strip, work, launcher)
        elif format_ in ("tgz", "tar.zst"):
            _untar(slug, slug, _gunzipped if format_ == "tgz" else _unzstd, 0, work, launcher)
        else:
            raise _no_slug(slug, "it is in no format of nsbuild's")


def _no_slug(slug: Path, why: str) -> UsageError:
    return UsageError(
        f"{slug} is not a slug: {why}.",
        "Give what nsbuild build has made: a directory, .tgz, .tar.zst, .squashfs or OCI.",
    )


def _too_much() -> str:
    return f"it unpacks to more than {MOST >> 30} GiB"


def _gunzipped(file: IO[bytes]) -> Iterator[bytes]:
    from isal import igzip

    with igzip.IGzipFile(fileobj=file, mode="rb") as stream:  # type: ignore[no-untyped-call]
        while piece := stream.read(_PIECE):
            yield piece


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    # The window that --long=27 of zstd makes, and what it takes itself without being told.
    stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file, read_across_frames=True)
    while piece := stream.read(_PIECE):
        yield piece


class _Feeder(threading.Thread):
    """Decompresses a file into a pipe."""

    def __init__(self, file: IO[bytes], pieces: Callable[[IO[bytes]], Iterator[bytes]], target: int) -> None:
        super().__init__(name="unpack", daemon=True)
        self._file = file
        self._pieces = pieces
        self._target = target
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            left = MOST
            for piece in self._pieces(self._file):
                left -= len(piece)
                if left < 0:
                    raise ValueError(_too_much())
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self._target, rest) :]
        except BrokenPipeError:
            pass  # tar has ended, for a reason that it tells, or because of what follows the end of the archive
        except Exception as error:
            self.error = error
        finally:
            os.close(self._target)


def _untar(
    slug: Path,
    archive: Path,
    pieces: Callable[[IO[bytes]], Iterator[bytes]],
    strip: int,
    work: Workspace,
    launcher: Launcher,
) -> None:
    reader, writer = os.pipe()
    try:
        with archive.open("rb") as file:
            feeder = _Feeder(file, pieces, writer)
            feeder.start()
            said = bytearray()
            try:
                argv = ["tar", "-xpf", "-", "-C", _APP, "--no-same-owner", f"--strip-components={strip}"]
                outcome = _launch(launcher, work, argv, said.extend, stdin=reader)
            finally:
                os.close(reader)
                feeder.join()
    except OSError as error:
        if error.filename is None:
            error.filename = str(archive)
        raise
    if feeder.error is not None:
        raise _no_slug(slug, _corruption(feeder.error)) from feeder.error
    _check(slug, "tar", outcome, said)


def _corruption(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it is truncated"
    return f"it cannot be decompressed ({str(error).strip().rstrip('.') or type(error).__name__})"


def _unsquash(slug: Path, work: Workspace, launcher: Launcher) -> None:
    if shutil.which("unsquashfs", path=RUN_PATH) is None:
        raise Refused("A .squashfs is unpacked by unsquashfs, which is not installed.", "Install squashfs-tools.")
    if work.owner is None or slug.stat().st_mode & stat.S_IROTH:
        _unsquash_bound(slug, work, launcher, [Bind(_IMAGE, str(slug), directory=False)])
        return
    # Of root's own: unsquashfs opens it by its name, as the workspace's user.
    copy = f"{work.directory('tmp')}/{Path(_IMAGE).name}"
    try:
        _copy(slug, copy, work.owner)
        _unsquash_bound(slug, work, launcher, [])
    finally:
        remove_tree(copy)


def _unsquash_bound(slug: Path, work: Workspace, launcher: Launcher, binds: Sequence[Bind]) -> None:
    listing, said = _Listing(), bytearray()
    listed = _launch(launcher, work, ["unsquashfs", "-lls", _IMAGE], listing.take, binds=binds)
    if listed.exit_code == 0 and listing.size > MOST:
        raise _no_slug(slug, _too_much())
    # Into the directory that is there (-f), which keeps its own mode.
    argv = ["unsquashfs", "-no-progress", "-quiet", "-no-xattrs", "-force", "-dest", _APP, _IMAGE]
    _check(slug, "unsquashfs", _launch(launcher, work, argv, said.extend, binds=binds), said)


class _Listing:
    """Adds up what `unsquashfs -lls` tells of files, which is nothing to keep: an image may hold millions."""

    _FILE = re.compile(rb"-[-a-zA-Z]{9} \S+ +([0-9]+) ")

    def __init__(self) -> None:
        self.size = 0
        self._rest = b""

    def take(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()[-4096:]
        self.size += sum(int(found[1]) for line in lines if (found := self._FILE.match(line)))


def _copy(slug: Path, target: str, owner: tuple[int, int]) -> None:
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with slug.open("rb") as file:
            copy_contents(file.fileno(), fd, os.fstat(file.fileno()))
        os.fchown(fd, *owner)
    finally:
        os.close(fd)


def _check(slug: Path, tool: str, outcome: Outcome, said: bytearray) -> None:
    if outcome.exit_code == 0:
        return
    lines = said.decode("utf-8", "replace").strip().splitlines()
    full = next((line for line in lines if said_full([line]) or _SHORT in line), "")
    if full:
        raise Refused(
            f"There is no room to unpack {slug}: {full.rstrip('.')}.",
            "Free some space, or give another --workspace-dir.",
        )
    if outcome.signal is not None:
        raise Refused(f"{tool} was killed by signal {outcome.signal} while it unpacked {slug}.")
    raise _no_slug(slug, lines[0].rstrip(".") if lines else f"{tool} failed")


def _launch(
    launcher: Launcher,
    work: Workspace,
    argv: Sequence[str],
    on_output: Callable[[bytes], None],
    *,
    binds: Sequence[Bind] = (),
    stdin: int | None = None,
) -> Outcome:
    places = {"/tmp": work.directory("tmp"), _APP: work.directory("app")}
    view = compose(
        read_host("/", [*places, *(bind.path for bind in binds)]),
        workspace=work.path,
        user=work.user,
        home=_APP,
        places=places,
        binds=binds,
        network="none",
        var_tmp=work.directory("var-tmp"),
    )
    env = {"PATH": RUN_PATH, "HOME": _APP, "LC_ALL": "C.UTF-8"}
    with open(os.devnull, "rb") as null:  # noqa: PTH123
        given = null.fileno() if stdin is None else stdin
        outcome = launcher.launch(view, argv, env=env, cwd="/tmp", stdin=given, on_output=on_output)
    if ENDING.intersection(outcome.forwarded):
        raise Interrupted("Interrupted while the slug was unpacked.")
    return outcome


def _layer(slug: Path) -> tuple[Path, int]:
    """The app's layer of an image of ours, and how many directories lead to the app in it."""
    try:
        (described,) = _objects(read_json(slug / "index.json").get("manifests"))
        manifest = read_json(_blob(slug, described))
        annotations = manifest.get("annotations")
        run_path = annotations.get(RUN_PATH_LABEL) if isinstance(annotations, dict) else None
        if not isinstance(run_path, str):
            raise _no_slug(slug, "it is an OCI image that nsbuild has not made")
        return _blob(slug, _objects(manifest.get("layers"))[-1]), len(run_path.strip("/").split("/"))
    except (OSError, ValueError, LookupError, RecursionError) as error:
        raise _no_slug(slug, f"its OCI layout is damaged ({error})") from error


def _objects(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("a list is missing")
    return value


def _blob(slug: Path, described: dict[str, object]) -> Path:
    digest = str(described.get("digest")).removeprefix("sha256:")
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError("a digest is malformed")
    return slug / "blobs" / "sha256" / digest
