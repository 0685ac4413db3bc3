"""The directory on disk that becomes `/`: made, verified, filled by rename and emptied again.

A build may write into `/` and everything below it that is not a mount, so what lies in a skeleton after the
first command is hostile: it is reached by descriptor, beneath the skeleton, never through a symlink.
"""

from __future__ import annotations

import errno
import os
import stat

from nsbuild.sandbox import kernel
from nsbuild.sandbox.outcome import LaunchError
from nsbuild.sandbox.view import Directory, Operation, Place, Symlink, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_BENEATH = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
_RENAME_NEEDS = stat.S_IRWXU


def remove_tree(path: str, *, dir_fd: int | None = None) -> None:
    """As in nsbuild.tree, which is imported when something is to be removed: off the launch path."""
    from nsbuild.tree.remove import remove_tree

    remove_tree(path, dir_fd=dir_fd)


def mount_point_kind(operation: Operation) -> str:
    """`file` or `directory`: what an operation needs to find at its path."""
    from nsbuild.sandbox.view import Bind, File

    if isinstance(operation, File) or (isinstance(operation, Bind) and not operation.directory):
        return "file"
    return "directory"


def contents(view: View) -> list[tuple[str, str, int | str]]:
    """What must lie in the skeleton: (path, kind, mode or target), parents first.

    What lies below a mount or a placed directory is not the skeleton's.
    """
    found: dict[str, tuple[str, str, int | str]] = {}
    covered: list[str] = []
    for operation in view.operations:
        path = operation.path
        if isinstance(operation, Place):
            covered.append(path)
            continue
        if any(path.startswith(f"{other}/") for other in covered):
            continue
        if isinstance(operation, Directory):
            found[path] = (path, "directory", operation.mode)
            continue
        if isinstance(operation, Symlink):
            found[path] = (path, "symlink", operation.target)
            continue
        parts = path.split("/")[1:-1]
        for depth in range(len(parts)):
            parent = "/" + "/".join(parts[: depth + 1])
            found.setdefault(parent, (parent, "directory", 0o755))
        kind = mount_point_kind(operation)
        found.setdefault(path, (path, kind, 0o755 if kind == "directory" else 0o644))
        covered.append(path)
    return list(found.values())


def expected(view: View) -> dict[str, tuple[int, int, str]]:
    """path -> (mode with type, uid, target) of everything in an untouched skeleton, `/` included."""
    uid = 0 if view.user.root_on_disk else view.user.uid
    listing = {"/": (stat.S_IFDIR | 0o755, uid, "")}
    for path, kind, detail in contents(view):
        if kind == "symlink":
            listing[path] = (stat.S_IFLNK | 0o777, uid, str(detail))
        else:
            listing[path] = ((stat.S_IFDIR if kind == "directory" else stat.S_IFREG) | int(detail), uid, "")
    return listing


class Skeleton:
    """One workspace's root directory, for one launch at a time: `take`, `verify`, `place`, `give_back`."""

    def __init__(self, workspace: str) -> None:
        self.workspace = workspace
        self.path = f"{workspace}/root"
        self._fd = -1
        self._placed: list[tuple[str, str]] = []
        self.kept_beside: dict[str, str] = {}
        self._taken = False
        self.on_step: Callable[[str, str], None] = lambda step, about: None
        """Told before and after everything that a journal must know to undo it."""

    @property
    def fd(self) -> int:
        return self._fd

    def take(self) -> None:
        """Claim it for one launch, until `give_back`. Raises LaunchError."""
        if self._taken:
            raise _in_use(self.path)
        self._taken = True

    def verify(self, view: View) -> None:
        """Make the skeleton, or reuse one in which nothing has changed. Raises OSError, LaunchError."""
        for operation in view.operations:
            if isinstance(operation, Place):
                # First: what is missing may lie in the skeleton still, when a launcher has been killed.
                os.lstat(operation.source)
        wanted = expected(view)
        if self._fd < 0:
            self._open_existing()
        if self._fd < 0 or self._listing(len(wanted)) != wanted:
            self.discard()
            self._make(view)

    def place(self, view: View) -> None:
        """Rename into it what the view places. Raises OSError; `give_back` undoes what has been done until then."""
        for operation in view.operations:
            if isinstance(operation, Place):
                self._place(operation)

    def _make(self, view: View) -> None:
        os.mkdir(self.path, 0o755)
        self._fd = _lock(self.path)
        uid, gid = (0, 0) if view.user.root_on_disk else (view.user.uid, view.user.gid)
        chown = os.geteuid() == 0 and uid != 0
        for path, kind, detail in contents(view):
            relative = path[1:]
            if kind == "symlink":
                os.symlink(str(detail), relative, dir_fd=self._fd)
            elif kind == "directory":
                os.mkdir(relative, 0o700, dir_fd=self._fd)
                os.chmod(relative, int(detail), dir_fd=self._fd)  # mkdir obeys the caller's umask
            else:
                fd = os.open(relative, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=self._fd)
                os.fchmod(fd, int(detail))
                os.close(fd)
            if chown:
                os.chown(relative, uid, gid, dir_fd=self._fd, follow_symlinks=False)
        os.fchmod(self._fd, 0o755)
        if chown:
            os.fchown(self._fd, uid, gid)

    def _listing(self, limit: int) -> dict[str, tuple[int, int, str]]:
        """path -> (mode with type, uid, target); stops once it is longer than `limit`."""
        listing: dict[str, tuple[int, int, str]] = {}
        for path, item in self._walk():
            target = os.readlink(path[1:], dir_fd=self._fd) if stat.S_ISLNK(item.st_mode) else ""
            listing[path] = (item.st_mode, item.st_uid, target)
            if len(listing) > limit:
                break
        return listing

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        yield "/", os.fstat(self._fd)
        pending = ["/"]
        while pending:
            directory = pending.pop()
            try:
                fd = os.open(f".{directory}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._fd)
            except OSError:
                continue
            with os.scandir(fd) as found:
                items = [(f"{directory.rstrip('/')}/{e.name}", e.stat(follow_symlinks=False)) for e in found]
            os.close(fd)
            for path, item in items:
                yield path, item
                if stat.S_ISDIR(item.st_mode):
                    pending.append(path)

    def _place(self, operation: Place) -> None:
        parent_path, _, name = operation.path.rpartition("/")
        source = os.lstat(operation.source)
        parent = self._reach(parent_path, make_for=(source.st_uid, source.st_gid))
        try:
            mode = stat.S_IMODE(source.st_mode)
            closed = mode & _RENAME_NEEDS != _RENAME_NEEDS
            if closed:
                # A directory that changes parents must be writable for whoever moves it.
                os.chmod(operation.source, mode | _RENAME_NEEDS)
            try:
                os.rename(operation.source, name, dst_dir_fd=parent)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                # The build before has left something here, in /tmp say.
                remove_tree(name, dir_fd=parent)
                os.rename(operation.source, name, dst_dir_fd=parent)
            if closed:
                os.chmod(name, mode, dir_fd=parent)
        finally:
            os.close(parent)
        self._placed.append((operation.path, operation.source))
        self.on_step("placed", operation.path)

    def _reach(self, path: str, make_for: tuple[int, int] | None = None) -> int:
        """An O_PATH descriptor of a directory of the skeleton; made passable where a build closed it.

        With `make_for` (uid, gid) what is missing on the way is made, and what is no directory replaced.
        """
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        for name in path.split("/")[1:]:
            try:
                try:
                    there = _enter(here, name)
                except OSError:
                    if make_for is None:
                        raise
                    remove_tree(name, dir_fd=here)
                    os.mkdir(name, 0o755, dir_fd=here)
                    there = _enter(here, name)
                    if os.geteuid() == 0:
                        os.chown(name, *make_for, dir_fd=here, follow_symlinks=False)
                _make_passable(there)
            finally:
                os.close(here)
            here = there
        return here

    def give_back(self) -> dict[str, str]:
        """Rename everything placed back to where it came from.

        Returns what came back for each path of the view: `directory`, `symlink`, `file`, or `missing` (a build
        may have removed it, or put a symlink on the way to it). Where the old path exists again, what came back
        is kept beside it: `kept_beside` tells. Raises OSError; what is not back yet stays in the skeleton, which
        is then not discarded.
        """
        found = {}
        self.kept_beside = {}
        if self._placed:
            _make_passable(self._fd)
        failed: list[tuple[str, str, OSError]] = []
        for path, source in reversed(self._placed):
            try:
                if any(other.startswith(f"{path}/") for other, _, _ in failed):
                    raise OSError(errno.EBUSY, "something is still in it", source)
                found[path], place = self._return(path, source)
            except OSError as error:
                failed.append((path, source, error))
                continue
            if place != source:
                self.kept_beside[source] = place
        self._placed = [(path, source) for path, source, _ in reversed(failed)]
        if failed:
            raise failed[0][2]
        self._taken = False
        return found

    def _return(self, path: str, source: str) -> tuple[str, str]:
        """(kind, where it is now) of one placed directory."""
        parent_path, _, name = path.rpartition("/")
        try:
            parent = self._reach(parent_path)
        except OSError:
            return "missing", source
        try:
            try:
                mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            except FileNotFoundError:
                return "missing", source
            # From here on what is not found is the directory it should go to.
            if stat.S_ISDIR(mode):
                # A directory that changes parents must be writable: its ".." changes.
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                _make_passable(fd)
            place = _rename_to_free(parent, name, source)
            if stat.S_ISDIR(mode):
                if mode & _RENAME_NEEDS != _RENAME_NEEDS:
                    os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(mode))
                os.close(fd)
            self.on_step("given back", path)
            return _kind(mode), place
        finally:
            os.close(parent)

    def discard(self) -> None:
        """Remove the skeleton, if it is ours, whatever a build has put into it, but never what was lent to it."""
        if self._fd < 0 or self._placed:
            return
        remove_tree(self.path)
        os.close(self._fd)
        self._fd = -1

    def release(self) -> None:
        """Leave the skeleton for a later launch, of this process or another, which verifies it."""
        if self._fd >= 0 and not self._placed:
            os.close(self._fd)
            self._fd = -1

    def _open_existing(self) -> None:
        """Take over what another launch has left. Raises LaunchError when its launcher lives."""
        try:
            if stat.S_ISDIR(os.lstat(self.path).st_mode):
                self._fd = _lock(self.path)
            else:
                remove_tree(self.path)
        except FileNotFoundError:
            return


def give_back_orphans(workspace: str, places: Mapping[str, str]) -> list[tuple[str, str]]:
    """Rename back what a dead launcher has left in its skeleton: (source, where it is now) of each.

    `places` maps paths of the view to their sources, as they were placed. Nothing may run in the skeleton. Raises
    OSError.
    """
    skeleton = Skeleton(workspace)
    try:
        skeleton._fd = os.open(skeleton.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        skeleton._placed = list(places.items())
        found = skeleton.give_back()
        sources = [places[path] for path, kind in found.items() if kind != "missing"]
        return [(source, skeleton.kept_beside.get(source, source)) for source in sources]
    finally:
        os.close(skeleton._fd)


def _rename_to_free(parent: int, name: str, target: str) -> str:
    """Rename to `target`, or to a name beside it where it exists (again): nothing is ever overwritten."""
    for attempt in range(1000):
        place = target if attempt == 0 else f"{target}.nsbuild-recovered{f'.{attempt}' if attempt > 1 else ''}"
        try:
            kernel.renameat2(parent, name, kernel.AT_FDCWD, place, kernel.RENAME_NOREPLACE)
            return place
        except kernel.KernelError as error:
            if error.errno == errno.EINVAL:  # a file system without RENAME_NOREPLACE
                if not os.path.lexists(place):
                    os.rename(name, place, src_dir_fd=parent)
                    return place
            elif error.errno != errno.EEXIST:
                raise OSError(error.errno, os.strerror(error.errno or 0), place) from None
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)


def _lock(path: str) -> int:
    """A descriptor of the skeleton that holds its lock. Raises LaunchError when another process has it.

    Removing a mount point succeeds, and takes the mount from a running build: so nobody does, without the lock.
    """
    import fcntl

    here = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    _make_passable(here)
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    raise _in_use(path)


def _make_passable(fd: int) -> None:
    """Undo a build's chmod, as far as renaming needs it. `fd` may be an O_PATH one."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & _RENAME_NEEDS != _RENAME_NEEDS:
        os.chmod(f"/proc/self/fd/{fd}", mode | _RENAME_NEEDS)


def _in_use(path: str) -> LaunchError:
    return LaunchError("skeleton", "flock", path, 0, "it is the root of a running launch")


def _enter(directory: int, name: str) -> int:
    return kernel.openat2(directory, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, _BENEATH)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "file"
