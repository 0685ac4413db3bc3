"""What `scripts/nsbuild` starts: gives the caller's environment back, then runs the command line."""

import os
from collections.abc import MutableMapping

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


if __name__ == "__main__":
    open_standard_streams()
    restore_environment(os.environb)

    from nsbuild.cli import main

    raise SystemExit(main())
