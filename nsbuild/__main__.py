"""What `scripts/nsbuild` starts: gives the caller's environment back, then runs the command line."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence
    from importlib.machinery import ModuleSpec
    from typing import NoReturn

# Agreed with scripts/nsbuild, reasons in docs/decisions/entry-point.md
PREFIX = b"NSBUILD_CALLER_"
# bash exports these whether or not the caller did. In the C locale Python adds LC_CTYPE, even with -I (PEP 538).
ADDED = (b"LC_CTYPE", b"OLDPWD", b"PWD", b"SHLVL", b"_")


def restore_environment(environ: MutableMapping[bytes, bytes]) -> None:
    """Undo what the wrapper, bash and Python did to the environment; without the wrapper's mark, nothing."""
    if environ.pop(PREFIX, None) is None:
        return
    for name in ADDED:
        environ.pop(name, None)
    for name in [name for name in environ if name.startswith(PREFIX)]:
        environ[name.removeprefix(PREFIX)] = environ.pop(name)


def open_standard_streams() -> None:
    """A closed one would become the next file that is opened, and the buildpack's output would go there."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def expect_children() -> None:
    """What started us may ignore SIGCHLD, and hand that down: the kernel then forgets how a process has ended."""
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class _Site:
    """The last finder: what is not where nsbuild is, `site` may know. The wrapper starts Python without it."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        sys.meta_path.remove(self)
        if path is not None:
            return None
        import site
        from importlib.machinery import PathFinder

        site.main()
        return PathFinder.find_spec(name)


def start() -> NoReturn:
    """Run the command line and end the process."""
    open_standard_streams()
    restore_environment(os.environb)
    expect_children()
    if sys.flags.no_site:
        sys.meta_path.append(_Site())

    from nsbuild.cli import main

    code = main()
    # The interpreter's own way out takes its modules apart one by one, and a builder waits for it.
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            code = code or 128 + 13
        except OSError as error:
            from nsbuild.cli.say import say

            if not code:
                say(f"nsbuild: The standard output: {error.strerror}.")
            code = code or 125
    os._exit(code)


if __name__ == "__main__":
    start()
