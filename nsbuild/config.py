"""`nsbuild.toml`, the user's and an app's: reading it. Which settings there are, `cli/configured.py` knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsbuild.errors import UsageError
from nsbuild.tree import read_beneath

NAME = "nsbuild.toml"
_WEB = ("https://", "http://", "git://")
_LIMIT = 1 << 20
"""Of an app's file, in bytes: it belongs to whoever wrote the app."""


@dataclass(frozen=True)
class ConfigFile:
    """`path` is how a person is told of it; `directory` what `./` in it is relative to.

    `of_app`: it came with a source, which may be anybody's.
    """

    path: str
    directory: str
    of_app: bool
    values: Mapping[str, Any]


def user_file() -> Path | None:
    """Where the user's own settings are (`$XDG_CONFIG_HOME/nsbuild`, `~/.config/nsbuild`); None without a home."""
    import platformdirs

    try:
        path: Path = platformdirs.user_config_path("nsbuild") / NAME
    except RuntimeError:
        return None
    return path if path.is_absolute() else None  # relative: older versions of platformdirs


def read_user_file() -> ConfigFile | None:
    """The user's file; None where there is none. Raises UsageError when it cannot be read, or is no TOML."""
    path = user_file()
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.", "Make it readable, or remove it.") from None
    return ConfigFile(str(path), str(path.parent), False, _parsed(data, str(path)))


def read_app_file(source: str | Path) -> ConfigFile | None:
    """The file in the directory `source`; None where there is none, and for a source that is no directory.

    Raises UsageError when it cannot be read (a link is not followed: it may lead out of the app), or is no TOML.
    """
    directory = os.path.realpath(source)
    path = os.path.join(source, NAME)
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # whoever opens the source says why
    try:
        data = read_beneath(fd, NAME, _LIMIT)
    except OSError as error:
        why = "a symbolic link" if os.path.islink(path) else error.strerror
        raise UsageError(f"{path} cannot be read: {why}.", "Give a plain file there, or remove it.") from None
    finally:
        os.close(fd)
    return None if data is None else ConfigFile(path, directory, True, _parsed(data, path))


def _parsed(data: bytes, path: str) -> dict[str, Any]:
    import tomllib  # most builds of a builder find no file

    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}: line {line} is not UTF-8.") from None
    except RecursionError:
        raise UsageError(f"{path}: it is nested too deeply.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}.") from None


def placed(text: str, directory: str) -> str:
    """A value that begins with `./` or `../` is relative to the file's directory, with `~/` to the user's home."""
    if text in (".", "..") or text.startswith(("./", "../")):
        return os.path.normpath(os.path.join(directory, text))
    return os.path.expanduser(text) if text.startswith("~/") else text


def outside(text: str, directory: str) -> bool:
    """Whether a place that an app's file names is neither in the app nor on the web.

    The build would see what its user has there, or may fetch with his keys (`git@host:private`).
    """
    if text.startswith(_WEB):
        return False
    if text.startswith(("/", "~")) or ":" in text or ".." in text.split("/"):
        return True
    inner = os.path.realpath(os.path.join(directory, text))
    return inner != directory and not inner.startswith(f"{directory}/")
