"""nsbuild compile and nsbuild exec: parsed by hand, because a builder waits for them.

Their options are the table `OPTIONS`; help and errors are made from it.
"""

from __future__ import annotations

import errno
import os
import time

from nsbuild.cli.say import say
from nsbuild.sandbox.outcome import AfterCommandError, LaunchError
from nsbuild.wrap import Unfinished, WrapOptions, compile_, exec_in_view, explain_view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nsbuild.rollout.noted import Asked
    from nsbuild.sandbox.limits import Limits
    from nsbuild.wrap import WrapResult

_MISUSED = 125
_AFTER_COMMAND = 123

USAGE = {
    "compile": "nsbuild compile [OPTION]... BUILDPACK_DIR BUILD_DIR CACHE_DIR [ENV_DIR]",
    "exec": "nsbuild exec --build-dir DIR [OPTION]... -- COMMAND...",
}
ABOUT = {
    "compile": "Run BUILDPACK_DIR/bin/compile where BUILD_DIR is at /app.",
    "exec": "Run COMMAND where DIR is at /app, with your environment.",
}
BOTH = ("compile", "exec")
# name -> (metavar, empty for a flag; help; the commands that have it)
OPTIONS = {
    "--build-dir": ("DIR", "what is at the run path inside", ("exec",)),
    "--run-path": ("PATH", "where BUILD_DIR is seen (default /app)", BOTH),
    "--attach": ("HOW", "auto, adopt (by rename) or bind (default auto)", BOTH),
    "--with-export": ("FILE", "source an earlier buildpack's export first; repeatable", BOTH),
    "--export-to": ("FILE", "where the buildpack's export goes, which a read-only one cannot keep", ("compile",)),
    "--tmp": ("DIR", "what is /tmp inside; the same for a chain of calls", BOTH),
    "--bind": ("SRC[:DST]", "show a file or directory, read-only; repeatable", BOTH),
    "--network": ("NET", "host or none (default host)", BOTH),
    "--no-userns": ("", "forbid user namespaces inside", BOTH),
    "--timeout": ("TIME", "then TERM, 10 seconds later KILL, and status 124; 90s, 15m, 2h", BOTH),
    "--memory": ("SIZE", "of all its processes, where a cgroup is delegated to us; else of each; 512M, 2G", BOTH),
    "--pids": ("N", "processes and threads", BOTH),
    "--cpu": ("CORES", "1.5, say; only where a cgroup is delegated to us", BOTH),
    "--workspace-dir": ("DIR", "where the private directory is made", BOTH),
    "--user": ("USER", "as root: whom to run as, a name or UID:GID", BOTH),
    "--fallback": ("PATH", "never or direct: without a sandbox where the kernel refuses one", BOTH),
    "--report": ("FILE", "write the record, JSON", BOTH),
    "--rollout": ("FILE", "let the flags in FILE decide: direct, shadow or namespace", ("compile",)),
    "--app": ("ID", "with --rollout: for which app", ("compile",)),
    "--attr": ("NAME=VALUE", "with --rollout: what rules may ask for, team=red; repeatable", ("compile",)),
    "--path": ("PATH", "with --rollout: direct, shadow or namespace, whatever the flags say", ("compile",)),
    "--rescue": ("", "with --rollout: run what failed in the namespace again, directly", ("compile",)),
    "--shadow-timeout": ("TIME", "with --rollout: for a shadow's candidate (default 30m)", ("compile",)),
    "--tty": ("", "give it a terminal of its own, relayed to yours: for a shell", ("exec",)),
    "--explain": ("", "print the view instead of running anything in it", ("exec",)),
    "--verbose": ("", "say on stderr how each directory was attached, and why", BOTH),
}


# The first is the default.
CHOICES = {"--attach": ("auto", "adopt", "bind"), "--network": ("host", "none"), "--fallback": ("never", "direct")}


_WITH_ROLLOUT = ("--app", "--attr", "--path", "--rescue", "--shadow-timeout")
_NOT_DIRECT = ("--network", "--memory", "--pids", "--cpu")
"""What nothing would keep on the direct path, which a rollout may take at any time."""


class Misused(Exception):
    """One sentence about the command line."""


def main(command: str, words: Sequence[str]) -> int:
    """Run `nsbuild compile` or `nsbuild exec`; returns the exit code."""
    try:
        options, rest = _parse(command, words)
        if "--help" in options:
            print(_help(command))
            return 0
        call = _Call(command, options, rest)
    except Misused as error:
        _say(f"{error} See nsbuild {command} --help.")
        return _MISUSED
    if call.report and not os.access(os.path.dirname(os.path.abspath(call.report)), os.W_OK):
        _say(f"The record cannot be written to {call.report}. Give --report a file in a directory of yours.")
        return _MISUSED
    began = time.monotonic()
    result: WrapResult | None = None
    problem, code = "", _MISUSED
    try:
        if call.explain:
            print(explain_view(call.build_dir, os.environ, call.options))
            return 0
        result = call.run()
        code = result.outcome.exit_code
    except AfterCommandError as error:
        result = error.result if isinstance(error, Unfinished) else None
        problem = f"{error} (the command had ended with {error.outcome.exit_code})."
        code = _AFTER_COMMAND
    except LaunchError as error:
        from nsbuild.sandbox.probe import explain

        problem = str(explain(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        problem = f"{place}{error.strerror or error}."
    except KeyboardInterrupt:
        problem, code = "Interrupted.", 130
    except Exception as error:
        from nsbuild.errors import NsbuildError

        if not isinstance(error, NsbuildError):
            raise
        problem = str(error)
    if call.verbose and call.told:
        _say(f"{call.told['path']}, as the rollout has decided ({call.told['reason']}).")
    if result is not None:
        problem = _tell(result, call.program, call.verbose, call.options.limits, problem)
    if problem:
        _say(problem)
    if call.report:
        return _report(call, result, problem, code, time.monotonic() - began)
    return code


class _Call:
    """One call of `nsbuild.wrap`, made of the words of the command line. Raises Misused."""

    def __init__(self, command: str, options: dict[str, list[str]], rest: list[str]) -> None:
        def one(name: str, default: str = "") -> str:
            return options.get(name, [default])[-1]

        for name, allowed in CHOICES.items():
            if one(name, allowed[0]) not in allowed:
                raise Misused(f"{name} {one(name)!r} is none of {', '.join(allowed)}.")
        self.asked = _asked(options)
        self.told: dict[str, Any] = {}
        self.options = WrapOptions(
            run_path=one("--run-path", "/app"),
            attach=one("--attach", "auto"),
            fallback=one("--fallback", "never" if self.asked is None else "direct"),
            network=one("--network", "host"),
            user_namespaces="--no-userns" not in options,
            binds=tuple(_bind(text) for text in options.get("--bind", ())),
            exports=tuple(options.get("--with-export", ())),
            tmp=one("--tmp"),
            export_to=one("--export-to"),
            timeout=_time("--timeout", one("--timeout")) if "--timeout" in options else None,
            limits=_limits(one("--memory"), one("--pids"), one("--cpu")),
            workspace_dir=one("--workspace-dir"),
            user=one("--user"),
            tty="--tty" in options,
        )
        self.command = command
        self.explain = "--explain" in options
        self.verbose = "--verbose" in options
        self.report = one("--report")
        self.buildpack, self.argv, self.directories = "", rest, ["", ""]
        if command == "compile":
            if not 3 <= len(rest) <= 4:
                raise Misused(f"It takes three or four directories, not {len(rest)}.")
            self.buildpack, self.build_dir, *self.directories = (*rest, "") if len(rest) == 3 else rest
            self.program = f"{self.buildpack}/bin/compile"
            return
        self.build_dir = one("--build-dir")
        if not self.build_dir:
            raise Misused("--build-dir is missing.")
        if not rest and not self.explain:
            raise Misused("There is no command; put it after --.")
        self.program = rest[0] if rest else ""

    def run(self) -> WrapResult:
        if self.buildpack:
            cache_dir, env_dir = self.directories
            if self.asked is not None:
                from nsbuild.rollout.arms import Call, compile_decided

                call = Call(self.buildpack, self.build_dir, cache_dir, env_dir, os.environ, self.options)
                return compile_decided(self.asked, call, _say, self.told)
            return compile_(self.buildpack, self.build_dir, cache_dir, env_dir, os.environ, self.options, _say)
        return exec_in_view(self.build_dir, self.argv, os.environ, self.options, _say)


def _report(call: _Call, result: WrapResult | None, problem: str, code: int, seconds: float) -> int:
    from nsbuild.tree import write_atomic
    from nsbuild.wrap.report import make_record

    record = make_record(
        call.command,
        call.buildpack,
        call.build_dir,
        call.options,
        result,
        error=problem,
        exit_code=code,
        seconds=seconds,
        rollout=call.told,
    )
    try:
        write_atomic(call.report, record.to_json().encode("utf-8", "surrogateescape"), None)
    except OSError as error:
        _say(f"The record cannot be written to {call.report}: {error.strerror}.")
        return _AFTER_COMMAND if result is not None else code
    return code


def _tell(result: WrapResult, ran: str, verbose: bool, limits: Limits | None, problem: str) -> str:
    """Say what is worth saying. Returns the problem, still to be said: ours, or the command's."""
    if verbose:
        for path, choice in result.attached.items():
            _say(f"{path}: {choice.how}, since {choice.why}.")
    outcome = result.outcome
    for source, place in outcome.kept_beside.items():
        _say(f"{source} exists again; what was built is in {place}.")
    for sentence in outcome.limited:
        _say(f"{sentence}.")
    if limits is not None:
        from nsbuild.sandbox.limits import oom_sentence

        if killed := oom_sentence(outcome.usage, limits):
            _say(f"{ran}: {killed}.")
    if problem:
        return problem
    if outcome.timed_out:
        return f"{ran} was ended by the time limit."
    if outcome.error:
        reason = "" if outcome.error == "not found" else os.strerror(outcome.error_number)
        sentence = f"{ran}: {outcome.error}{f' ({reason})' if reason else ''}."
        if outcome.error_number == errno.EACCES and (
            forbidding := [path for path in result.attached if _noexec(path)]
        ):
            sentence += f" {forbidding[0]} is on a mount that forbids it (noexec): use a directory on another mount."
        return sentence
    return ""


def _noexec(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
    except OSError:
        return False


def _parse(command: str, words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Options by name, and what is left. Options end at `--` or at the first word that is none."""
    options: dict[str, list[str]] = {}
    pending = list(words)
    while pending and pending[0].startswith("-") and pending[0] != "-":
        word = pending.pop(0)
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            return {"--help": []}, []
        metavar, _, commands = OPTIONS.get(name, ("", "", ()))
        if command not in commands:
            raise Misused(f"There is no option {name}.")
        if not metavar:
            if equals:
                raise Misused(f"{name} takes no value.")
        elif not equals:
            if not pending:
                raise Misused(f"{name} needs a value ({metavar}).")
            value = pending.pop(0)
        options.setdefault(name, []).append(value)
    return options, pending


def _asked(options: dict[str, list[str]]) -> Asked | None:
    """What --rollout and the options beside it say; None without it."""
    if "--rollout" not in options:
        for name in _WITH_ROLLOUT:
            if name in options:
                raise Misused(f"{name} is for --rollout FILE, which is missing.")
        return None
    if "--app" not in options:
        raise Misused("--rollout needs --app ID.")
    for name in _NOT_DIRECT:
        if options.get(name, ["host"])[-1] != "host":
            raise Misused(f"{name} cannot be kept on the direct path, which --rollout may take.")
    from nsbuild.rollout.noted import Asked

    return Asked(
        options["--rollout"][-1],
        options["--app"][-1],
        tuple(options.get("--attr", ())),
        options.get("--path", [""])[-1],
        "--rescue" in options,
        _time("--shadow-timeout", options.get("--shadow-timeout", ["30m"])[-1]),
    )


def _bind(text: str) -> tuple[str, str]:
    """SRC[:DST]; a source that exists as written, colons and all, is taken whole."""
    source = destination = text
    if not os.path.exists(source) and ":" in source:
        source, _, destination = source.rpartition(":")
    if not destination.startswith("/"):
        raise Misused(f"--bind {text}: {destination!r} is not an absolute path.")
    return os.path.abspath(source), os.path.normpath(destination)


_LONGEST = 2_000_000.0
"""poll(2) waits 2^31 milliseconds at most."""


def seconds_of(text: str) -> float:
    """What `--timeout` means: seconds, or a number with s, m or h. Raises Misused."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    plain = number.replace(".", "", 1)
    seconds = float(number) * unit if plain.isascii() and plain.isdigit() else -1.0
    if not 0 < seconds <= _LONGEST:
        raise Misused(f"{text!r} is not a time like 90s, 15m or 2h, above 0 and at most {_LONGEST / 3600:.0f}h.")
    return seconds


def _time(option: str, text: str) -> float:
    try:
        return seconds_of(text)
    except Misused as error:
        raise Misused(f"{option}: {error}") from None


_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def bytes_of(text: str) -> int:
    """What `--memory` means: bytes, or a number with K, M, G or T, of 1024 each. Raises Misused."""
    size = text.lower().removesuffix("b").removesuffix("i")
    unit = _UNITS.get(size[-1:], 0)
    try:
        found = float(size[:-1] if unit else size) * (unit or 1)
    except ValueError:
        found = float("nan")
    if not 0 <= found < float("inf"):
        raise Misused(f"{text!r} is not a size like 512M or 2G.")
    return int(found)


def _limits(memory: str, pids: str, cpu: str) -> Limits | None:
    if not (memory or pids or cpu):
        return None
    from nsbuild.sandbox.limits import Limits

    def number(text: str, what: str, example: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = float("nan")
        if not 0 <= found < float("inf") or (what == "--pids" and found % 1):
            raise Misused(f"{what} {text!r} is not a number like {example}.")
        return found

    try:
        size = bytes_of(memory) if memory else None
    except Misused as error:
        raise Misused(f"--memory: {error}") from None
    return Limits(
        size,
        int(number(pids, "--pids", "200")) if pids else None,
        number(cpu, "--cpu", "1.5") if cpu else None,
    )


def _help(command: str) -> str:
    lines = [f"Usage: {USAGE[command]}", "", f"  {ABOUT[command]}", ""]
    for name, (metavar, about, commands) in OPTIONS.items():
        if command in commands:
            lines.append(f"  {f'{name} {metavar}'.rstrip():24} {about}")
    return "\n".join(
        [
            *lines,
            "",
            "  The exit status is the command's own, 128+n when signal n killed it. Ours: 123 failed afterwards,",
            "  124 time limit, 125 refused or misused, 126 cannot be executed, 127 not found.",
        ]
    )


def _say(text: str) -> None:
    say(f"nsbuild: {text}")
