"""The command group, and where errors become a line on stderr and an exit code."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

import nsbuild
from nsbuild.cli import wrappers
from nsbuild.cli.say import say
from nsbuild.errors import ExitCode, Interrupted, NsbuildError

_HOMES = {
    "audit": "nsbuild.cli.audit",
    "build": "nsbuild.cli.build",
    "buildpack": "nsbuild.cli.buildpack",
    "cache": "nsbuild.cli.cache",
    "config": "nsbuild.cli.config",
    "diff": "nsbuild.cli.diff",
    "detect": "nsbuild.cli.detect",
    "doctor": "nsbuild.cli.doctor",
    "gc": "nsbuild.cli.gc",
    "lint": "nsbuild.cli.lint",
    "recover": "nsbuild.cli.recover",
    "rollout": "nsbuild.cli.rollout",
    "run": "nsbuild.cli.run",
    "shell": "nsbuild.cli.shell",
    "test": "nsbuild.cli.test",
    "verify": "nsbuild.cli.verify",
}
_WRAPPERS = frozenset({*wrappers.USAGE, "run", "shell"})
"""Their status is the command's own, so a failure of ours is 125 whatever it is."""
_COMPARING = frozenset({"audit", "diff"})
"""Scripts know them as they know diff(1): whatever the trouble is, it is 2."""


class _Group(click.Group):
    """Loads a command when it is called: none pays for another's imports."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted((*_HOMES, *wrappers.USAGE))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in wrappers.USAGE:
            return _shown_only(name)
        if name not in _HOMES:
            return None
        from importlib import import_module

        command: click.Command = getattr(import_module(_HOMES[name]), name)
        return command


def _shown_only(name: str) -> click.Command:
    """`compile` and `exec` do not come through click; in the list of commands they do."""
    return click.Command(
        name,
        callback=lambda words: wrappers.main(name, words),
        params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)],
        help=wrappers.ABOUT[name],
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
    )


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(nsbuild.__version__, prog_name="nsbuild")
def group() -> None:
    """Run classic buildpacks in an unprivileged mount namespace where BUILD_DIR is at /app."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Never shows a traceback for what a user can cause."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in words if not word.startswith("-")), "")
    misuse = ExitCode.REFUSED if command in _WRAPPERS else ExitCode.USAGE
    refused = ExitCode.USAGE if command in _COMPARING else ExitCode.REFUSED
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Paths and Procfiles hold any bytes.
        utf8 = sys.stdout.encoding.lower() in ("utf-8", "utf8")
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    try:
        result = group.main(args=words, prog_name="nsbuild", standalone_mode=False, obj=words)
        return int(result or 0)
    except NsbuildError as error:
        _say(error)
        return int({ExitCode.USAGE: misuse, ExitCode.REFUSED: refused}.get(error.code, error.code))
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.ctx.get_help() if error.ctx else "")
        return int(misuse)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "nsbuild"
        sentence = error.format_message()
        end = "" if sentence.endswith((".", "?")) else "."
        say(f"nsbuild: {sentence}{end} See {where} --help.")
        return int(misuse)
    except (click.Abort, KeyboardInterrupt):
        say("nsbuild: Interrupted.")
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not fail again when it flushes.
        sys.stdout = None
        return 128 + signal.SIGPIPE
    except MemoryError:
        say("nsbuild: There is not enough memory.")
        return int(refused)
    except OSError as error:
        place = error.filename or _unwritable()
        say(f"nsbuild: {place}{': ' if place else ''}{error.strerror or error}.")
        return int(refused)


def _unwritable() -> str:
    """The standard output, when it was that: what it could not take is tried again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        return "The standard output"
    return ""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"Interrupted by {signal.Signals(number).name}.")


def _say(error: NsbuildError) -> None:
    say(f"nsbuild: {error}")
