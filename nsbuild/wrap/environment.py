"""The caller's environment, as it must read inside the view."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


OWN = ("/tmp", "/var/tmp")
"""Every view has these of its own, unless something below them is shown."""


def map_environment(
    environ: Mapping[str, str], paths: Mapping[str, str], home: str, visible: Iterable[str]
) -> dict[str, str]:
    """The caller's environment; values that are one of `paths`, or have one as leading components, are mapped.

    HOME is the run path. TMPDIR is left out when it names something below none of `visible`.
    """
    longest_first = by_length(paths)
    mapped = {name: map_path(value, longest_first) for name, value in environ.items()}
    mapped["HOME"] = home
    if "TMPDIR" in mapped and not seen(mapped["TMPDIR"], visible):
        del mapped["TMPDIR"]
    return mapped


def seen(path: str, visible: Iterable[str]) -> bool:
    """Whether the view shows a path of the caller's: not what lies in a /tmp or /var/tmp of its own."""
    around = max((shown for shown in visible if below(path, shown)), key=len, default="")
    return around != "" and (around not in OWN or path == around)


def map_path(value: str, paths: Iterable[tuple[str, str]]) -> str:
    """`value` with the first of `paths` that leads it replaced."""
    for old, new in paths:
        if below(value, old):
            return new + value[len(old) :]
    return value


def by_length(paths: Mapping[str, str]) -> list[tuple[str, str]]:
    """For `map_path`: the longest first, since one directory may lie in another."""
    return sorted(paths.items(), key=lambda pair: -len(pair[0]))


def spellings(given: str, real: str) -> list[str]:
    """How a caller may write a directory. Not by a bare name: APP_NAME=build has nothing to do with ./build."""
    return [*([given] if "/" in given else []), os.path.abspath(given), real]


def below(path: str, directory: str) -> bool:
    """Whether a path is a directory or lies in it, by its text."""
    return path == directory or path.startswith(f"{directory}/")
