"""Several processes of a slug at once, each a dyno of its own, as `heroku local` runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nsbuild.errors import UsageError
from nsbuild.refusals import Refusals
from nsbuild.runtime.boot import command_of, environment
from nsbuild.runtime.dyno import Dyno
from nsbuild.runtime.lines import Lines, Output
from nsbuild.runtime.opened import RunOptions, network_needs, new_workspace, opened
from nsbuild.runtime.process import slug_path
from nsbuild.runtime.slug import SlugInfo
from nsbuild.runtime.together import Process, Together, signals_blocked
from nsbuild.sandbox import Launcher
from nsbuild.slug import boot

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_OF_A_TYPE = 100


@dataclass(frozen=True)
class Member:
    """One process of a formation: `name` is its DYNO."""

    name: str
    argv: tuple[str, ...]
    port: int
    colour: int


def members(info: SlugInfo, formation: Mapping[str, int] | None, port: int) -> list[Member]:
    """The processes of a formation, by type and how many; of each type but `release` one when there is none.

    Every one has a PORT: types are 100 apart and processes of a type 1, as ddollar/foreman (lib/foreman/engine.rb,
    `port_for`) and strongloop/node-foreman (lib/proc.js, `start`) number them; but `web` comes first, wherever the
    Procfile has it. Raises UsageError.
    """
    if formation is None:
        formation = dict.fromkeys((name for name in info.process_types if name != "release"), 1)
        if not formation:
            raise UsageError("The slug has no process type to run.", "Add a Procfile, or give a command after --.")
    found = []
    for place, name in enumerate(sorted(formation, key=lambda name: name != "web")):
        argv, count, first = tuple(command_of(info, name)), formation[name], port + place * _OF_A_TYPE
        if not 1 <= count <= _OF_A_TYPE:
            raise UsageError(f"{name}={count} is not from 1 to {_OF_A_TYPE}.", "Leave out what is not to run.")
        if first + count - 1 > 65535:
            raise UsageError(f"The ports of {name} would end above 65535.", "Give a lower --port.")
        colour = _COLOURS[place % len(_COLOURS)]
        found += [Member(f"{name}.{number + 1}", argv, first + number, colour) for number in range(count)]
    return found


def run_formation(
    slug: str | Path,
    formation: Mapping[str, int] | None = None,
    options: RunOptions | None = None,
    *,
    env: Mapping[str, str] | None = None,
    colours: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> int:
    """Run several processes of a slug at once until the first ends; then the others get SIGTERM, and SIGKILL 10
    seconds later.

    `formation` says how many of each process type; without it, one of each but `release`. What they print goes to
    this process's stdout, line by line, with the process's name before each; stdin is `/dev/null`. `tell` gets a
    sentence when they have been started and when one has ended.

    SIGINT, SIGTERM, SIGHUP and SIGQUIT end all of them in the same way, other signals are passed on to each. Returns
    the exit status of the first that ended, or 128+n after such a signal. Raises NsbuildError; none runs then.
    """
    options = options or RunOptions()
    if options.tty:
        raise UsageError("Several processes cannot share a terminal.", "Name one process type with --tty.")
    with Refusals() as refusals, contextlib.ExitStack() as stack:
        found = stack.enter_context(opened(slug_path(slug), options))
        wanted = members(found.info, formation, options.port)
        dynos = [Dyno(found, options, stack.enter_context(new_workspace(found.user, options))) for _ in wanted]
        launcher = stack.enter_context(Launcher.for_caller())
        width = max(len(member.name) for member in wanted)
        base = network_needs(options).variables
        stack.enter_context(signals_blocked())
        processes = [
            Process(
                member.name,
                launcher,
                dyno.views(),
                boot(member.argv),
                environment(found.info, member.name, base=base, config_vars=env or {}, port=member.port),
                Lines(_prefix(member, width, colours)),
            )
            for member, dyno in zip(wanted, dynos, strict=True)
        ]
        tell(f"Starting {', '.join(f'{member.name} (PORT {member.port})' for member in wanted)}.")
        with Together(processes, Output(1), tell) as together:
            status = together.run()
        refusals.ran = True
    return status


def _prefix(member: Member, width: int, colours: bool) -> bytes:
    text = f"{member.name.ljust(width)} | ".encode()
    return b"\x1b[%dm%s\x1b[0m" % (member.colour, text) if colours else text
