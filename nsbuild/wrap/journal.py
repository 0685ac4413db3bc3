"""What must be put back when a launcher is killed, written before anything is moved.

A text file for each invocation in a per-user state directory: `key value...` a line, words separated by spaces.
Whoever may still put things back (the launcher, its guardian) holds an flock on it, so a journal that can be
locked is nobody's. It is not synced to the disk: it survives every process, not the machine.
"""

from __future__ import annotations

import errno
import fcntl
import os

from nsbuild.sandbox.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION = 1
_ESCAPES = (("\\", "\\\\"), (" ", "\\s"), ("\n", "\\n"), ("\t", "\\t"))


class Entry(Value):
    """A journal as read: `places` maps paths in the view to the host directories that were moved there."""

    path: str
    version: int
    launcher: int
    workspace: str
    places: Mapping[str, str]
    child: int = 0


def state_directory() -> str:
    """Where this user's journals are: XDG_STATE_HOME, else below the home of the account, else /var/tmp.

    Not HOME: a builder changes it from call to call. Raises OSError when none can be used.
    """
    import pwd

    candidates = []
    if os.environ.get("XDG_STATE_HOME", "").startswith("/"):
        candidates.append(os.environ["XDG_STATE_HOME"] + "/nsbuild")
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
        if home.startswith("/") and os.path.isdir(home):
            candidates.append(f"{home}/.local/state/nsbuild")
    except KeyError:
        pass
    candidates.append(f"/var/tmp/nsbuild-{os.geteuid()}")
    for candidate in candidates:
        directory = f"{candidate}/journals"
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError:
            continue
        # /var/tmp is everybody's: somebody may have made the name first.
        if all(os.lstat(part).st_uid == os.geteuid() for part in (candidate, directory)) and os.access(
            directory, os.W_OK | os.X_OK
        ):
            return directory
    raise OSError(errno.EACCES, "no state directory of yours can be written", candidates[-1])


class Journal:
    """The journal of this invocation. `note` appends a step; nothing is ever rewritten."""

    def __init__(self, directory: str, workspace: str, places: Mapping[str, str]) -> None:
        name = f"{os.getpid()}-{os.urandom(4).hex()}"
        self.path = f"{directory}/.{name}"
        self.fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        head = [f"version {VERSION}", f"launcher {os.getpid()}", f"workspace {_escape(workspace)}"]
        head += [f"place {_escape(path)} {_escape(source)}" for path, source in places.items()]
        try:
            self._write("\n".join([*head, "begin"]))
            # Under its own name only now that it is locked and whole: an empty one would be taken for a dead one's.
            os.rename(self.path, f"{directory}/{name}")
        except OSError:
            self.end()
            raise
        self.path = f"{directory}/{name}"

    def note(self, step: str, about: str = "") -> None:
        """One step that is done."""
        self._write(f"{step.replace(' ', '-')} {_escape(about)}".rstrip())

    def end(self) -> None:
        """Everything has been put back."""
        os.unlink(self.path)
        os.close(self.fd)

    def _write(self, text: str) -> None:
        data = os.fsencode(text + "\n")
        if os.write(self.fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)


def read(path: str) -> Entry | None:
    """The journal at `path`; None when its writer was killed before it had begun, and so had moved nothing."""
    with open(path, "rb") as file:  # noqa: PTH123
        lines = [os.fsdecode(line).split(" ") for line in file.read().split(b"\n")]
    if not any(words[0] == "begin" for words in lines):
        return None
    single = {words[0]: words[1:] for words in lines if words[0] != "place"}
    return Entry(
        path,
        int(single["version"][0]),
        int(single["launcher"][0]),
        _unescape(single["workspace"][0]),
        {_unescape(words[1]): _unescape(words[2]) for words in lines if words[0] == "place"},
        int(single["cloned"][0]) if "cloned" in single else 0,
    )


def abandoned(directory: str) -> Iterator[tuple[str, int]]:
    """(path, locked descriptor, to be closed) of every journal that nobody holds any more."""
    for name in sorted(os.listdir(directory)):
        path = f"{directory}/{name}"
        if name.startswith("."):
            _remove_unborn(path)
            continue
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        yield path, fd


def _remove_unborn(path: str) -> None:
    """A journal whose writer was killed before it had moved anything, or is about to give it its name."""
    writer = os.path.basename(path)[1:].partition("-")[0]
    if writer.isdigit() and os.path.exists(f"/proc/{writer}"):
        return
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def entries(directory: str) -> Iterator[Entry]:
    """Every journal, whether or not anybody holds it."""
    for name in sorted(name for name in os.listdir(directory) if not name.startswith(".")):
        try:
            entry = read(f"{directory}/{name}")
        except FileNotFoundError:
            continue
        if entry is not None:
            yield entry


def workspaces(directory: str) -> set[str]:
    """Every workspace that a journal names: the caller's directories may be in it."""
    return {entry.workspace for entry in entries(directory)}


def held(directory: str) -> Iterator[Entry]:
    """The journals of invocations that are under way."""
    for name in sorted(os.listdir(directory)):
        try:
            with open(f"{directory}/{name}", "rb") as file:  # noqa: PTH123
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    entry = read(f"{directory}/{name}")
                    if entry is not None:
                        yield entry
        except FileNotFoundError:
            continue


def _escape(text: str) -> str:
    for plain, escaped in _ESCAPES:
        text = text.replace(plain, escaped)
    return text


def _unescape(text: str) -> str:
    plain = {"\\": "\\", "s": " ", "n": "\n", "t": "\t"}
    pieces = iter(text)
    return "".join(plain[next(pieces)] if piece == "\\" else piece for piece in pieces)
