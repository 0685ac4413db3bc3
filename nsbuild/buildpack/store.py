"""Buildpacks that were fetched, in the user's cache: each tree once, under the digest of its files.

    refs/KEY/entry.json     what a reference led to; KEY/part is a download that broke off
    trees/DIGEST/           the files of a buildpack

Who reads a tree holds a shared flock on its directory, who fetches a reference an exclusive one on refs/KEY. A tree
that no entry names is removed when nobody holds it; so is what a killed fetch has left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nsbuild.buildpack.buildpack import check_buildpack, files_digest
from nsbuild.buildpack.download import Limits, Progress, Validators, download
from nsbuild.buildpack.git import Git, Unreachable, is_pinned
from nsbuild.buildpack.reference import Reference
from nsbuild.errors import Refused, UsageError
from nsbuild.tree import fsync_directory, remove_tree, tree_size, write_atomic
from nsbuild.tree.locks import is_there, lock_directory, locked, made_and_locked
from nsbuild.workspace import user_cache

_NEW = "new-"
_MAX_UNPACKED = 2 << 30
_MAX_FILES = 200_000


@dataclass(frozen=True)
class Entry:
    """What a reference led to.

    `tree` is the digest of the buildpack's files; `archive` that of the archive they came in, `commit` that of the
    git repository; `ref` the full name of a branch or tag. `fetched` is when (seconds since the epoch), `checked`
    when it last was the newest. `complete` is false when the URL held what was not written down.
    """

    reference: str
    kind: str
    url: str
    tree: str
    archive: str = ""
    commit: str = ""
    ref: str = ""
    fetched: float = 0.0
    checked: float = 0.0
    bytes: int = 0
    complete: bool = True
    validators: Validators = field(default_factory=Validators)

    @classmethod
    def read(cls, path: Path) -> Entry | None:
        """None where there is none, or what is there is of another version."""
        try:
            values = json.loads(path.read_bytes())
            return cls(**{**values, "validators": Validators(**values["validators"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @property
    def when(self) -> str:
        """When it was fetched, for a person."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.fetched))


@dataclass(frozen=True)
class Opened:
    """A buildpack that is there to be copied: its directory, and where it comes from.

    `warning` is a sentence for the user when it may not be the newest.
    """

    reference: str
    directory: Path
    url: str = ""
    archive: str = ""
    commit: str = ""
    warning: str = ""


class Store:
    """The fetched buildpacks below `root`. Any number of processes may use it at once."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        limits: Limits | None = None,
        progress: Progress = lambda name, done, total: None,
    ) -> None:
        self._root = root
        self.limits = limits or Limits()
        self.progress = progress

    @property
    def root(self) -> Path:
        """Raises Refused for a user without a home."""
        return self._root or user_cache() / "buildpacks"

    # -- what a build does

    @contextlib.contextmanager
    def open(self, reference: Reference, *, newest: bool = True) -> Iterator[Opened]:
        """The buildpack that `reference` means, fetched where need be, and kept as long as the context lasts.

        With `newest` the other side is asked each time whether there is a newer one, which costs one request; what
        was fetched before serves, with a warning, when the network does not. Without, what is there serves.

        Raises UsageError when it is no buildpack, Refused when it cannot be fetched or stored.
        """
        if reference.kind == "directory":
            directory = Path(reference.location)
            check_buildpack(directory, reference.shown)
            yield Opened(reference.shown, directory)
            return
        with contextlib.ExitStack() as held:
            try:
                entry, warning = self._current(reference, newest, held)
            except OSError as error:
                raise Refused(
                    f"The buildpack {reference.shown} cannot be stored in {self.root}: {error.strerror or error}.",
                    "Free some space, or set XDG_CACHE_HOME to a directory of yours.",
                ) from error
            yield Opened(reference.shown, self._tree(entry.tree), entry.url, entry.archive, entry.commit, warning)

    def _current(self, reference: Reference, newest: bool, held: contextlib.ExitStack) -> tuple[Entry, str]:
        """The entry, whose tree is `held` from now on, and a warning."""
        with self._turn(reference) as place, contextlib.ExitStack() as meanwhile:
            stored = Entry.read(place / "entry.json")
            known = stored if stored is not None and self._hold(stored.tree, meanwhile) else None
            if known is not None and (not newest or is_pinned(reference.ref, known.commit)):
                held.push(meanwhile.pop_all())
                return known, ""
            try:
                entry = self._fetch(reference, place, known, held)
            except Unreachable as error:
                if known is None:
                    raise
                held.push(meanwhile.pop_all())
                return known, f"{error.sentence} The copy fetched on {known.when} is used."
            if known is not None and entry.tree == known.tree:
                held.push(meanwhile.pop_all())
            write_atomic(str(place / "entry.json"), json.dumps(asdict(entry)).encode(), 0o600)
            meanwhile.close()
            self.collect()
            if stored is not None and known is None:
                return entry, f"The stored copy of {reference.shown} was damaged; it was fetched again."
            return entry, ""

    # -- what `nsbuild buildpack` does

    def entries(self) -> list[Entry]:
        """Everything that is stored, by its reference."""
        found = [Entry.read(path) for path in self.root.glob("refs/*/entry.json")]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.reference)

    def remove(self, reference: str) -> bool:
        """Forget what a reference, as `entries` shows it or its URL, led to; False when nothing is stored of it.

        Raises Refused while a build uses it.
        """
        found = False
        for path in sorted(self.root.glob("refs/*/entry.json")):
            entry = Entry.read(path)
            if entry is None or reference not in (entry.reference, entry.url):
                continue
            found = True
            with contextlib.suppress(FileNotFoundError), locked(path.parent, fcntl.LOCK_EX) as there:
                if there:
                    remove_tree(str(path.parent))
        self.collect()
        return found

    # -- fetching: the newest; `known` itself, checked now, where that is it

    def _fetch(self, reference: Reference, place: Path, known: Entry | None, held: contextlib.ExitStack) -> Entry:
        if reference.kind == "git":
            return self._from_git(reference, known, held)
        if reference.kind == "archive":
            return self._from_archive(reference, known, held)
        return self._from_url(reference, place, known, held)

    def _from_git(self, reference: Reference, known: Entry | None, held: contextlib.ExitStack) -> Entry:
        git = Git(reference, timeout=self.limits.total, max_bytes=self.limits.max_bytes)
        pinned = known is None and len(reference.ref) in (40, 64) and is_pinned(reference.ref, reference.ref)
        newest = None if pinned else git.newest()
        name, commit = newest or (reference.ref, "")
        if known is not None and commit and known.commit == commit:
            return replace(known, checked=time.time())
        self.progress(reference.shown, 0, None)
        with self._making() as new:
            commit = git.checkout(name, new)
            return self._put(reference, new, held, commit=commit, ref=name)

    def _from_archive(self, reference: Reference, known: Entry | None, held: contextlib.ExitStack) -> Entry:
        path = Path(reference.location)
        try:
            with path.open("rb") as file:
                archive = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise UsageError(
                f"The buildpack {path} cannot be read: {error.strerror}.", "Make it readable."
            ) from error
        if known is not None and known.archive == archive:
            return replace(known, checked=time.time())
        with self._making() as new:
            return self._put(reference, self._unpacked(reference, path, new), held, archive=archive)

    def _from_url(self, reference: Reference, place: Path, known: Entry | None, held: contextlib.ExitStack) -> Entry:
        part = place / "part"
        asked = known.validators if known is not None else Validators()
        validators = download(reference, part, asked, self.limits, self.progress)
        if validators is None:
            assert known is not None
            return replace(known, checked=time.time())
        with part.open("rb") as file:
            archive = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        try:
            if known is not None and known.archive == archive:
                return replace(known, checked=time.time(), validators=validators)
            with self._making() as new:
                top = self._unpacked(reference, part, new)
                return self._put(reference, top, held, archive=archive, validators=validators)
        finally:
            for name in ("part", "part.json"):
                (place / name).unlink(missing_ok=True)

    def _unpacked(self, reference: Reference, archive: Path, new: Path) -> Path:
        """Where in `new` the buildpack is: archives that a forge makes have one directory at the top."""
        from nsbuild.tree.unpack import ArchiveError, unpack

        try:
            unpack(archive, str(new), max_bytes=_MAX_UNPACKED, max_files=_MAX_FILES)
        except ArchiveError as error:
            told = str(error).replace(f"{archive}: ", "").replace(str(archive), "it").rstrip(".")
            raise UsageError(
                f"The buildpack {reference.shown} cannot be unpacked: {told}.", "Give an archive of a buildpack."
            ) from error
        inside = list(new.iterdir())
        if len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink() and inside[0].name != "bin":
            return inside[0]
        return new

    def _put(
        self,
        reference: Reference,
        top: Path,
        held: contextlib.ExitStack,
        *,
        archive: str = "",
        commit: str = "",
        ref: str = "",
        validators: Validators | None = None,
    ) -> Entry:
        """Put the tree `top`, which is ours to move, under its digest. Raises UsageError when it is no buildpack.

        Its files are not synced: a tree that a crash has damaged is found out by its digest, and fetched again.
        """
        check_buildpack(top, reference.shown)
        size, files = tree_size(str(top))
        if size > _MAX_UNPACKED or files > _MAX_FILES:
            raise Refused(
                f"The buildpack {reference.shown} is {size >> 20} MB in {files} files.",
                "Give a buildpack: none is that large.",
            )
        top.chmod(0o755)
        _make_readable(top)
        tree = files_digest(top)
        place = self._tree(tree)
        # Held before it has its name, under which others would find it and, named by no entry yet, remove it.
        lock = lock_directory(top, fcntl.LOCK_SH)
        held.callback(os.close, lock)
        while True:
            try:
                os.rename(top, place)
                fsync_directory(str(place.parent))
                break
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            if self._hold(tree, held):
                break
            if not self._remove_damaged(place, tree):
                if self._hold(tree, held):
                    break  # another build has just mended it
                raise Refused(
                    f"A running build uses a stored copy of the buildpack {reference.shown} that was damaged.",
                    "Wait for it.",
                )
        now = time.time()
        return Entry(
            reference=reference.shown,
            kind=reference.kind,
            url=reference.url,
            tree=tree,
            archive=archive,
            commit=commit,
            ref=ref,
            fetched=now,
            checked=now,
            bytes=size,
            complete=not reference.secret,
            validators=validators or Validators(),
        )

    def _remove_damaged(self, place: Path, tree: str) -> bool:
        """False when somebody uses it."""
        try:
            with contextlib.suppress(FileNotFoundError), locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB) as there:
                if there and not _is_whole(place, tree):  # by now
                    _discard(place)
        except BlockingIOError:
            return False
        return True

    # -- places and locks

    def _tree(self, digest: str) -> Path:
        return self.root / "trees" / digest.replace(":", "-")

    def _hold(self, tree: str, held: contextlib.ExitStack) -> bool:
        """Keep the tree from being removed; False when it is gone, or its files are not what they were."""
        place = self._tree(tree)
        with contextlib.suppress(OSError):
            lock = lock_directory(place, fcntl.LOCK_SH)
            if is_there(place, lock) and _is_whole(place, tree):
                held.callback(os.close, lock)
                return True
            os.close(lock)
        return False

    @contextlib.contextmanager
    def _turn(self, reference: Reference) -> Iterator[Path]:
        """refs/KEY, for nobody else meanwhile."""
        (self.root / "trees").mkdir(parents=True, exist_ok=True)
        place = self.root / "refs" / reference.key
        with made_and_locked(place):
            yield place

    @contextlib.contextmanager
    def _making(self) -> Iterator[Path]:
        """A new directory beside the trees; who else cleans up there sees by its lock that it is in use."""
        parent = self.root / "trees" / f"{_NEW}{os.urandom(6).hex()}"
        with made_and_locked(parent):
            try:
                new = parent / "tree"
                new.mkdir()
                yield new
            finally:
                remove_tree(str(parent))

    def collect(self) -> list[str]:
        """Remove the trees that no entry names, and what killed fetches have left, but for what is in use; the paths.

        A download that broke off stays, to be gone on with.
        """
        removed = []
        for tree in sorted(self.root.glob("trees/*")):
            with contextlib.suppress(OSError), locked(tree, fcntl.LOCK_EX | fcntl.LOCK_NB) as there:
                # Looked up under the lock: who writes an entry has held its tree since before it had this name.
                if there and tree.name not in {self._tree(entry.tree).name for entry in self.entries()}:
                    _discard(tree)
                    removed.append(str(tree))
        for place in sorted(self.root.glob("refs/*")):
            with contextlib.suppress(OSError), locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB):
                place.rmdir()  # ENOTEMPTY for all but those of which nothing could be fetched
        return removed


def _is_whole(place: Path, tree: str) -> bool:
    try:
        return files_digest(place) == tree
    except OSError:
        return False


def _discard(place: Path) -> None:
    """Remove a tree whose lock we hold. Under another name: whoever stores it again would find its own an empty
    directory, put the new one in its place, and have that removed.
    """
    aside = place.with_name(f"{_NEW}{os.urandom(6).hex()}")
    os.rename(place, aside)
    remove_tree(str(aside))


def _make_readable(top: Path) -> None:
    """Archives may close what is in them to everybody."""
    for parent, directories, files in os.walk(top):
        for name, wanted in [*((name, 0o700) for name in directories), *((name, 0o400) for name in files)]:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode) and mode & wanted != wanted:
                path.chmod(stat.S_IMODE(mode) | wanted)
