"""nsbuild rollout"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from nsbuild.cli.rollout_text import chain, standing
from nsbuild.cli.say import say
from nsbuild.errors import ExitCode, Refused, UsageError
from nsbuild.rollout import Decision, Ledger, attributes_of, choose, edit, state_directory
from nsbuild.rollout.source import settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsbuild.rollout.status import Status

Function = TypeVar("Function", bound=Callable[..., Any])

flags_option = click.option(
    "--rollout", "flags", metavar="FILE", help="The flags file. Default: [rollout] flags of your nsbuild.toml."
)
json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")
_WHY = click.option("--why", default="", metavar="TEXT", help="The reason, for the log.")


@click.group(short_help="Move builds to the namespace bit by bit, and back.")
def rollout() -> None:
    """Move builds to the namespace bit by bit: who gets it, how that goes, and how to stop."""


def flags_file(given: str | None) -> str:
    """The flags file, absolute. Raises UsageError when none is named."""
    name = given or settings().flags
    if not name:
        raise UsageError(
            "No flags file is named.",
            'Give --rollout FILE, or set flags = "FILE" below [rollout] in your nsbuild.toml.',
        )
    return os.path.abspath(name)


def opened_state() -> tuple[Path, Ledger]:
    """The state directory and its ledger, which says what it has to say on stderr. Raises Refused."""
    try:
        directory = state_directory()
    except OSError as error:
        raise Refused(
            f"The rollout's state directory {error.filename} cannot be made: {error.strerror}.",
            "Set NSBUILD_ROLLOUT_STATE to a directory of yours.",
        ) from None
    return directory, Ledger(directory, lambda sentence: say(f"nsbuild: {sentence}"))


def _asks(function: Function) -> Function:
    options = [
        flags_option,
        click.option("--attr", "words", multiple=True, metavar="NAME=VALUE", help="What rules may ask for."),
        click.option(
            "--path",
            "override",
            default="",
            metavar="PATH",
            help="As if decided by hand: direct, shadow or namespace.",
        ),
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@rollout.command()
@click.option("--app", required=True, metavar="ID", help="The app's id.")
@_asks
def decide(app: str, flags: str | None, words: tuple[str, ...], override: str, as_json: bool) -> None:
    """Print the path of one build: direct, shadow or namespace. For builders that do not call `nsbuild compile`."""
    decision = _decision(app, flags, words, override)
    if decision.problem:
        say(f"nsbuild: {decision.problem}")
    click.echo(json.dumps(asdict(decision), indent=2) if as_json else decision.path)


@rollout.command()
@click.argument("app")
@_asks
def explain(app: str, flags: str | None, words: tuple[str, ...], override: str, as_json: bool) -> None:
    """Print every question that is asked for APP, and the answers. Nothing is run or recorded."""
    decision = _decision(app, flags, words, override)
    click.echo(json.dumps(asdict(decision), indent=2) if as_json else chain(decision))


def _decision(app: str, flags: str | None, words: tuple[str, ...], override: str) -> Decision:
    try:
        state = state_directory()
    except OSError:
        state = None  # a decision does without
    return choose(flags_file(flags), app, attributes_of(words), override=override, state=state)


@rollout.command("set")
@flags_option
@click.option("--namespace", metavar="PERCENT", help="Apps that are built and shipped from the namespace.")
@click.option("--shadow", metavar="PERCENT", help="Apps up to that share, beyond --namespace, that are built twice.")
@click.option(
    "--allow",
    multiple=True,
    metavar="APP[=PATH]",
    help="This path, whatever the percentage; without PATH: namespace.",
)
@click.option("--deny", multiple=True, metavar="APP", help="Direct, whatever rules and percentages say.")
@click.option("--forget", multiple=True, metavar="APP", help="Take it off both lists.")
@click.option("--expires", metavar="TIME", help="When the file stops counting: 2030-01-31T12:00:00Z, or never.")
@click.option("--kill", is_flag=True, help="Everything goes direct, from now on, whatever the flags file holds.")
@click.option("--unkill", is_flag=True, help="Let the flags count again.")
@_WHY
def set_(flags: str | None, kill: bool, unkill: bool, why: str, **options: Any) -> None:
    """Change who gets which path. Checked, written at once, and logged in FILE.log with who, when and why."""
    file = flags_file(flags)
    given = [name for name, value in options.items() if value not in (None, ())]
    if kill or unkill:
        if given or (kill and unkill):
            raise click.UsageError(f"--{'kill' if kill else 'unkill'} goes alone, with --why.")
        (edit.kill if kill else edit.unkill)(file, why)
        click.echo("killed: every build goes direct" if kill else "the flags count again")
        return

    def share(name: str) -> int | None:
        return None if options[name] is None else edit.buckets_of(options[name])

    expires = options["expires"]
    change = edit.Change(
        namespace=share("namespace"),
        shadow=share("shadow"),
        allow=dict(edit.allowed(text) for text in options["allow"]),
        deny=options["deny"],
        forget=options["forget"],
        expires="" if expires == "never" else expires,
    )
    click.echo(f"{file}: {edit.apply(file, change, why)}")


@rollout.command(short_help="How it stands: the switch, the shares, and what has come of the builds.")
@flags_option
@json_option
def status(flags: str | None, as_json: bool) -> None:
    """How it stands: the switch, the shares, the last edit, and what has come of the builds."""
    from nsbuild.rollout.status import read_status

    state, ledger = opened_state()
    found = read_status(flags_file(flags), state, ledger, datetime.now(UTC))
    click.echo(json.dumps(asdict(found), indent=2) if as_json else standing(found))


@rollout.command()
@flags_option
@click.option(
    "--cap",
    type=click.IntRange(min=0),
    metavar="APPS",
    help="So many broken apps stop it, whatever the evidence. Default 5; 0: never.",
)
@click.option("--dry-run", is_flag=True, help="Stop nothing.")
@json_option
def check(flags: str | None, cap: int | None, dry_run: bool, as_json: bool) -> int:
    """The guard: is the namespace doing worse? Stops the rollout when it is. Run it as often as you like.

    Exits 0 when it is passing, 1 when it is failing, 3 when it is inconclusive, 2 and 125 in trouble.
    """
    from nsbuild.rollout.check import check as look
    from nsbuild.rollout.guard import CAP, State

    file = flags_file(flags)
    checked = look(opened_state()[1], file, cap=CAP if cap is None else cap, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(checked), indent=2))
    else:
        for line in checked.as_text():
            click.echo(line)
    codes = {State.PASSING: ExitCode.OK, State.FAILING: ExitCode.FAILING, State.INCONCLUSIVE: ExitCode.INCONCLUSIVE}
    return codes[checked.verdict.state]


@rollout.command(short_help="Write one HTML page with the numbers of status, and the guard's.")
@flags_option
@click.option("-o", "--output", required=True, metavar="FILE", help="The page, which is replaced at once.")
def report(flags: str | None, output: str) -> None:
    """Write one HTML page, which needs no network: shares, success, durations, fallbacks, differences, the guard."""
    try:
        from nsbuild.rollout.report import as_html
    except ImportError as error:
        raise UsageError(f"{error}: install nsbuild[rollout].") from None
    from nsbuild.rollout.check import check as look
    from nsbuild.rollout.status import read_status

    file = flags_file(flags)
    state, ledger = opened_state()
    status = read_status(file, state, ledger, datetime.now(UTC))
    page = as_html(status, look(ledger, file, dry_run=True).verdict, time.time())
    _replace(output, page)
    click.echo(output)


@rollout.command()
@flags_option
@click.option("-o", "--output", metavar="FILE", help="Replace FILE at once, for a textfile collector.")
@click.option(
    "--otlp", metavar="URL", help="Send them to a collector, http://HOST:4318/v1/metrics, and print nothing."
)
def metrics(flags: str | None, output: str | None, otlp: str | None) -> None:
    """Print the numbers of status for Prometheus, or send them to a collector."""
    from nsbuild.rollout.metrics import as_prometheus
    from nsbuild.rollout.status import read_status

    state, ledger = opened_state()
    found = read_status(flags_file(flags), state, ledger, datetime.now(UTC))
    if otlp is not None:
        _send(found, otlp)
        if output is None:
            return
    text = as_prometheus(found)
    if output is None:
        click.echo(text, nl=False)
        return
    _replace(output, text)


def _replace(output: str, text: str) -> None:
    from nsbuild.tree import write_atomic

    try:
        write_atomic(output, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}.") from None


def _send(status: Status, url: str) -> None:
    try:
        from nsbuild.rollout.otlp import send
    except ImportError as error:
        raise Refused(f"{error}.", "Install nsbuild[otlp].") from None
    send(status, url)


@rollout.command()
@flags_option
@click.option("--flags", "restore", is_flag=True, help="Put the last good flags back where a bad flags file is.")
@click.option("--older-than", "days", type=click.FloatRange(min=0), metavar="DAYS", help="Remove older records.")
@_WHY
def recover(flags: str | None, restore: bool, days: float | None, why: str) -> int:
    """Take in the records that wait in the spool; restore flags; remove old records."""
    state, ledger = opened_state()
    taken, rejected = ledger.ingest()
    click.echo(f"{taken} records taken in")
    if rejected:
        say(f"nsbuild: {rejected} lines of the spool were no records; they are kept in {state}/spool.rejected.")
    if days is not None:
        click.echo(f"{ledger.retain(days)} records older than {days:g} days removed")
    if restore:
        file = flags_file(flags)
        click.echo(f"{file}: {edit.restore(file, state, why)}")
    return ExitCode.OK
