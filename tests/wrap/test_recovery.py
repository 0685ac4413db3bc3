"""Nothing of a builder's is lost: killed at every step of attach, run and detach, by launcher and by guardian."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from support.processes import ROOT, SOMEBODY, Child, become, descriptors, eventually, in_child

from nsbuild.tree import remove_tree
from nsbuild.wrap import WrapOptions, compile_, exec_in_view, journal, pool, recovery, turns, wrap

T = TypeVar("T")
COMMAND = ["sh", "-c", "echo built > /app/built; sleep 0.02"]
ENVIRON = {"PATH": "/usr/bin:/bin"}


class Site:
    """A builder's directories: BUILD_DIR `app`, a state directory, and who works there."""

    def __init__(self, base: str, as_root: bool) -> None:
        self.base = base
        self.as_root = as_root
        self.app = f"{base}/app"
        self.state = f"{base}/state"
        for path in (self.app, self.state):
            os.mkdir(path)
        Path(self.app, "source").write_text("precious")
        if ROOT and not as_root:
            for path in (base, self.app, self.state, f"{self.app}/source"):
                os.chown(path, SOMEBODY, SOMEBODY)
        self.inode = os.stat(self.app).st_ino

    def enter(self) -> None:
        os.environ["XDG_STATE_HOME"] = self.state
        if ROOT and not self.as_root:
            become(SOMEBODY, SOMEBODY)

    def run(self) -> int:
        return exec_in_view(self.app, COMMAND, ENVIRON, WrapOptions(attach="adopt")).outcome.exit_code

    def refusal(self) -> str:
        """Why another invocation cannot have BUILD_DIR now."""

        def action() -> str:
            self.enter()
            try:
                self.run()
            except Exception as error:
                return str(error)
            return "it ran"

        return in_child(action)

    def recover(self) -> list[str]:
        def action() -> list[str]:
            self.enter()
            return recovery.recover_all(journal.state_directory())

        return in_child(action)

    def journals(self) -> list[str]:
        directory = f"{self.state}/nsbuild/journals"
        return os.listdir(directory) if os.path.isdir(directory) else []

    def intact(self) -> bool:
        """BUILD_DIR is where it was, with what was in it, and nothing is beside it."""
        return (
            os.path.isdir(self.app)
            and os.stat(self.app).st_ino == self.inode
            and Path(self.app, "source").read_text() == "precious"
            and sorted(os.listdir(self.base)) == ["app", "state"]
            and not self.journals()
        )


@pytest.fixture(params=["user", "root"])
def site(request: pytest.FixtureRequest, ground: str) -> Iterator[Site]:
    if request.param == "root" and not ROOT:
        pytest.skip("only root can start nsbuild as root")
    yield Site(ground, request.param == "root")


def _kill_at(number: int | str, *, before: bool, guardian_too: bool) -> None:
    """From here on this process is killed at the `number`th line of its journal, or at the first that tells of this
    step, before or after it is written.
    """
    written = [0]
    guardians: list[int] = []
    write, make = journal.Journal._write, recovery.Guardian.__init__

    def killing(self: journal.Journal, text: str) -> None:
        if not before:
            write(self, text)
        if number in (written[0], text.split()[0]):
            for pid in guardians if guardian_too else ():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.kill(os.getpid(), signal.SIGKILL)
        written[0] += 1
        if before:
            write(self, text)

    def remembering(self: recovery.Guardian, kept: journal.Journal) -> None:
        make(self, kept)
        guardians.append(self.pid)

    journal.Journal._write = killing  # type: ignore[method-assign]
    recovery.Guardian.__init__ = remembering  # type: ignore[method-assign]


def _steps(site: Site) -> list[str]:
    """What the journal of an undisturbed run says, line by line."""

    def action() -> list[str]:
        site.enter()
        lines: list[str] = []
        write = journal.Journal._write

        def recording(self: journal.Journal, text: str) -> None:
            write(self, text)
            lines.append(text)

        journal.Journal._write = recording  # type: ignore[method-assign]
        assert site.run() == 0
        return lines

    return in_child(action)


@pytest.mark.parametrize("guardian_too", [False, True], ids=["launcher", "launcher and guardian"])
@pytest.mark.parametrize("before", [True, False], ids=["before the line", "after the line"])
def test_a_kill_at_every_step_loses_nothing(site: Site, before: bool, guardian_too: bool) -> None:
    steps = _steps(site)
    kinds = {step.split()[0] for step in steps}
    assert {"version", "placed", "cloned", "given-back"} <= kinds, steps
    for number in range(len(steps)):

        def action(number: int = number) -> None:
            site.enter()
            _kill_at(number, before=before, guardian_too=guardian_too)
            site.run()

        status = Child(action).ended()
        assert os.WTERMSIG(status) == signal.SIGKILL, f"step {number} ({steps[number]}) did not come"
        if guardian_too:
            site.recover()
            assert site.intact(), f"not recovered after {steps[number]}: {os.listdir(site.base)}"
        else:
            # Before there is a guardian there is nothing to give back but an empty journal.
            assert (number == 0 and site.recover() == [] and site.intact()) or eventually(site.intact), (
                f"not given back after {steps[number]}: {os.listdir(site.base)} {site.journals()}"
            )


def test_the_next_invocation_puts_back_first(site: Site) -> None:
    cloned = [step.split()[0] for step in _steps(site)].index("cloned")

    def killed() -> None:
        site.enter()
        _kill_at(cloned, before=False, guardian_too=True)
        site.run()

    Child(killed).ended()
    assert not os.path.exists(site.app)

    def again() -> int:
        site.enter()
        return site.run()

    assert in_child(again) == 0
    assert site.intact()


def test_a_path_that_exists_again_is_not_overwritten(site: Site) -> None:
    cloned = [step.split()[0] for step in _steps(site)].index("cloned")

    def killed() -> None:
        site.enter()
        _kill_at(cloned, before=False, guardian_too=True)
        site.run()

    Child(killed).ended()
    os.mkdir(site.app)
    said = site.recover()
    kept = f"{site.app}.nsbuild-recovered"
    assert said == [f"{site.app} exists again; what was there is {kept}"]
    assert Path(kept, "source").read_text() == "precious"
    assert os.listdir(site.app) == []


def test_a_build_that_still_runs_is_not_disturbed(site: Site) -> None:
    """`nsbuild recover` beside a live one leaves it alone; a second invocation is refused."""

    def long() -> int:
        site.enter()
        command = ["sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.02; done"]
        return exec_in_view(site.app, command, ENVIRON, WrapOptions(attach="bind")).outcome.exit_code

    running = Child(long)
    try:
        assert eventually(lambda: bool(site.journals()))
        time.sleep(0.2)
        assert site.recover() == []

        assert "in use by another nsbuild" in site.refusal()
    finally:
        running.signal(signal.SIGTERM)
    assert running.result() == 128 + signal.SIGTERM


def test_two_on_one_build_dir_exclude_each_other_while_it_is_adopted(site: Site) -> None:
    def long() -> int:
        site.enter()
        return exec_in_view(site.app, ["sleep", "60"], ENVIRON, WrapOptions(attach="adopt")).outcome.exit_code

    running = Child(long)
    try:
        assert eventually(lambda: not os.path.exists(site.app))

        assert "in use by another nsbuild (process" in site.refusal()
    finally:
        running.signal(signal.SIGTERM)
    assert running.result() == 128 + signal.SIGTERM
    assert site.intact()


def test_a_journal_of_a_newer_version_is_left_alone(site: Site) -> None:
    def action() -> str:
        site.enter()
        kept = journal.Journal(journal.state_directory(), f"{site.base}/nowhere", {})
        text = Path(kept.path).read_text().replace("version 1", "version 99")
        Path(kept.path).write_text(text)
        os.close(kept.fd)
        try:
            recovery.recover_all(journal.state_directory())
        except OSError as error:
            return str(error.strerror)
        return "it was recovered"

    assert "newer nsbuild" in in_child(action)
    assert len(site.journals()) == 1


@pytest.mark.parametrize("name", ["with space", "new\nline", "back\\slash", "b\udcffyte", "tab\tand \\s"])
def test_any_path_survives_the_journal(ground: str, name: str) -> None:
    kept = journal.Journal(ground, f"{ground}/{name}", {f"/{name}": f"{ground}/{name}"})
    entry = journal.read(kept.path)
    kept.end()
    assert entry is not None
    assert entry.workspace == f"{ground}/{name}"
    assert entry.places == {f"/{name}": f"{ground}/{name}"}


# -- one in the middle of another


def killed(site: Site) -> Callable[[], None]:
    """A launch, by who is at work already, that is killed with its guardian while BUILD_DIR is in its workspace."""

    def action() -> None:
        _kill_at("cloned", before=False, guardian_too=True)
        site.run()

    def kill() -> None:
        Child(action).ended()
        assert not os.path.exists(site.app)

    return kill


def cached(app: str, cache: str) -> int:
    """A compile with a CACHE_DIR, to which it adds."""
    pack = f"{os.path.dirname(app)}/pack"
    os.makedirs(f"{pack}/bin", exist_ok=True)
    Path(pack, "bin/compile").write_text('#!/bin/sh\nls "$2" >> "$2/listed"\n')
    os.chmod(f"{pack}/bin/compile", 0o755)
    return compile_(pack, app, cache, "", ENVIRON, WrapOptions(attach="adopt")).outcome.exit_code


def killed_with_cache(site: Site, cache: str) -> None:
    """A compile by who is at work already, killed with its guardian while BUILD_DIR and CACHE_DIR are away."""
    os.mkdir(cache)
    Path(cache, "kept").touch()

    def action() -> None:
        _kill_at("cloned", before=False, guardian_too=True)
        cached(site.app, cache)

    Child(action).ended()
    assert not os.path.exists(site.app) and not os.path.exists(cache)


def while_it_is_put_back(other: Callable[[], T]) -> T:
    """Recover, and begin something else in the middle of it, that has the time which this host takes."""
    begun: list[Child[T]] = []
    vars(wrap)["_NOTICE"] = 50.0

    def apart() -> T:
        for fd, path in descriptors().items():
            if "/journals/" in path:
                os.close(fd)  # the lock is ours as long as a fork of us has it
        return other()

    def begin() -> None:
        begun.append(Child(apart))
        select.select([begun[0]._reader], [], [], 1.0)  # it ends, or waits for us

    before_the_first(recovery, "give_back_orphans", begin)
    recovery.recover_all(journal.state_directory())
    return begun[0].result()


def before_the_first(place: object, name: str, other: Callable[[], object]) -> None:
    """Do something else before the first call of a function."""
    real = getattr(place, name)

    def meanwhile(*words: object, **more: object) -> object:
        setattr(place, name, real)
        other()
        return real(*words, **more)

    setattr(place, name, meanwhile)


def test_a_workspace_is_not_taken_from_one_killed_since_the_journals_were_read(site: Site) -> None:
    kill = killed(site)
    other = f"{site.base}/other"

    def action() -> int:
        site.enter()
        os.mkdir(other)
        before_the_first(pool, "_lock", kill)
        return exec_in_view(other, COMMAND, ENVIRON, WrapOptions(attach="adopt")).outcome.exit_code

    assert in_child(action) == 0
    assert Path(other, "built").exists()
    site.recover()
    remove_tree(other)
    assert site.intact(), os.listdir(site.base)


def test_gc_removes_no_workspace_of_one_killed_since_the_journals_were_read(site: Site) -> None:
    kill = killed(site)

    def action() -> list[str]:
        site.enter()
        state = journal.state_directory()
        before_the_first(pool, "_lock", kill)
        return pool.clear(f"{os.path.dirname(state)}/workspaces", lambda: journal.workspaces(state))

    in_child(action)
    site.recover()
    assert site.intact()


def test_a_build_dir_that_is_being_put_back_is_waited_for(site: Site) -> None:
    kill = killed(site)

    def action() -> int:
        site.enter()
        kill()
        return while_it_is_put_back(site.run)

    assert in_child(action) == 0
    assert site.intact()


def test_a_cache_that_is_being_put_back_is_waited_for(site: Site) -> None:
    other, cache = f"{site.base}/other", f"{site.base}/cache"

    def action() -> int:
        site.enter()
        killed_with_cache(site, cache)
        os.mkdir(other)
        return while_it_is_put_back(lambda: cached(other, cache))

    assert in_child(action) == 0
    assert Path(cache, "listed").read_text() == "kept\nlisted\n"
    assert sorted(os.listdir(site.base)) == ["app", "cache", "other", "pack", "state"]


def test_a_cache_whose_user_was_killed_just_now_is_put_back_first(site: Site) -> None:
    """After the look for killed ones, and before the turn."""
    other, cache = f"{site.base}/other", f"{site.base}/cache"

    def action() -> int:
        site.enter()
        os.mkdir(other)
        before_the_first(turns, "take", lambda: killed_with_cache(site, cache))
        return cached(other, cache)

    assert in_child(action) == 0
    assert Path(cache, "listed").read_text() == "kept\nlisted\n"
    assert sorted(os.listdir(site.base)) == ["app", "cache", "other", "pack", "state"]


def test_a_build_dir_that_was_replaced_while_its_lock_was_waited_for(ground: str) -> None:
    app = f"{ground}/app"
    os.mkdir(app)

    def replaced() -> None:
        os.rename(app, f"{ground}/old")
        os.mkdir(app)

    def action() -> bool:
        before_the_first(wrap, "flock_within", replaced)
        fd = wrap._lock(app, f"{ground}/nowhere", lambda sentence: None)
        return os.path.samestat(os.fstat(fd), os.stat(app))

    assert in_child(action)
