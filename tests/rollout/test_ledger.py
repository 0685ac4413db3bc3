"""The ledger: nothing lost, nothing torn, nothing twice, and no build failed for its sake."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from support.meanwhile import meanwhile

from nsbuild.errors import Refused
from nsbuild.rollout import ledger as ledger_module
from nsbuild.rollout import spool
from nsbuild.rollout.decision import Decided, Decision, Outcome
from nsbuild.rollout.ledger import NAME, Ledger, state_directory
from nsbuild.rollout.schema import MIGRATIONS, as_row, from_row, migrate

DECISION = Decision(
    app="shop",
    path="namespace",
    reason="percentage",
    bucket=17,
    flags="sha256:ab",
    attributes={"host": "b1", "stack": "heroku-24", "team": "red", "buildpacks": ("heroku/nodejs", "heroku/python")},
)


def outcome(number: int = 0, **changes: object) -> Outcome:
    decided = Decided(id=f"d{number}", app="shop", path="shadow", reason="rule", decided=1.0)
    made = decided.outcome("namespace", "different", started=100.0 + number, seconds=2.5, diff={"real": 2})
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_decision_and_its_outcome_come_back_as_they_were(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    decided = ledger.decided(DECISION)
    done = decided.outcome(
        "namespace",
        "rescued",
        started=12.5,
        seconds=3.25,
        exit_code=0,
        namespace_exit_code=11,
        leaks=4,
        slug_bytes=1 << 33,
        diff={"real": 1, "time": 7},
        boot="passed",
        shadow=True,
    )
    ledger.record(done)
    assert list(ledger.decisions()) == [decided]
    assert (decided.host, decided.stack, decided.team) == ("b1", "heroku-24", "red")
    assert decided.buildpacks == ("heroku/nodejs", "heroku/python")
    assert list(ledger.outcomes()) == [replace(done, seq=1)]
    assert (done.decision, done.flags, done.reason) == (decided.id, "sha256:ab", "percentage")


def test_text_of_any_bytes_is_kept_readable(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(outcome(fallback="/srv/\udcff: refused"))
    assert next(ledger.outcomes()).fallback == "/srv/\\udcff: refused"


def test_rows_are_read_on_from_a_number(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for number in range(3):
            ledger.record(outcome(number, started=50.0 - number))  # the clock goes backwards
        assert [row.decision for row in ledger.outcomes()] == ["d0", "d1", "d2"]
        assert [row.decision for row in ledger.outcomes(after=2)] == ["d2"]


WRITERS = """
import os, sys
from pathlib import Path
from nsbuild.rollout.decision import Decided
from nsbuild.rollout.ledger import Ledger
directory, processes, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def write(number):
    said = []
    with Ledger(directory, said.append) as ledger:
        for each in range(count):
            decided = Decided(id=f"{number}-{each}", app=f"app-{number}", path="direct", reason="off", decided=1.0)
            ledger.record(decided.outcome("direct", "succeeded", started=float(number), seconds=float(each)))
    assert not said, said
children = []
for number in range(processes):
    child = os.fork()
    if not child:
        write(number)
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_32_processes_of_1000_records_each_lose_and_tear_none(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", "-c", WRITERS, str(tmp_path), "32", "1000"], check=True)
    rows = list(Ledger(tmp_path).outcomes())
    assert {(row.decision, row.app, row.started, row.seconds) for row in rows} == {
        (f"{number}-{each}", f"app-{number}", float(number), float(each))
        for number in range(32)
        for each in range(1000)
    }
    assert len(rows) == 32_000
    assert not spool.waiting(tmp_path) and not (tmp_path / spool.REJECTED).exists()


def test_a_locked_database_sends_records_to_the_spool_which_the_next_one_takes_in(tmp_path: Path) -> None:
    said: list[str] = []
    ledger = Ledger(tmp_path, said.append, timeout=0.05)
    ledger.record(outcome(0))
    with sqlite3.connect(tmp_path / NAME, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        ledger.record(outcome(1))
        ledger.record(outcome(2))
        assert len((tmp_path / spool.NAME).read_text().splitlines()) == 2
        other.execute("ROLLBACK")
    other.close()
    ledger.record(outcome(3))
    assert (tmp_path / spool.NAME).read_bytes() == b"" and not said
    assert sorted(row.decision for row in ledger.outcomes()) == ["d0", "d1", "d2", "d3"]


def test_a_spool_that_was_taken_in_but_not_emptied_gives_nothing_twice(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    row = outcome()
    spool.append(tmp_path, "outcome", as_row(row))
    kept = (tmp_path / spool.NAME).read_bytes()
    assert ledger.ingest() == (1, 0)
    (tmp_path / spool.NAME).write_bytes(kept)  # killed after the commit
    ledger.ingest()
    assert list(ledger.outcomes()) == [replace(row, seq=1)]


def test_a_torn_line_harms_no_other_and_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / spool.NAME).write_bytes(b'{"table": "outcome", "row": {"id": "to')  # killed in the middle
    spool.append(tmp_path, "outcome", as_row(outcome(1)))
    spool.append(tmp_path, "outcome", {**as_row(outcome(2)), "app": None})
    spool.append(tmp_path, "nothing", {})
    assert ledger.ingest() == (1, 3)
    assert [row.decision for row in ledger.outcomes()] == ["d1"]
    rejected = (tmp_path / spool.REJECTED).read_bytes().splitlines()
    assert rejected[0] == b'{"table": "outcome", "row": {"id": "to' and len(rejected) == 3


def test_a_line_of_an_older_nsbuild_lacks_fields_and_is_taken(tmp_path: Path) -> None:
    row = as_row(outcome())
    for name in ("boot", "leaks", "diff"):
        del row[name]
    spool.append(tmp_path, "outcome", row)
    taken = next(Ledger(tmp_path).outcomes())
    assert (taken.decision, taken.boot, taken.leaks, taken.diff) == ("d0", "", None, None)


def test_a_spool_whose_holder_is_stopped_does_not_stop_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "WAIT", 0.05)
    with (tmp_path / spool.NAME).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        spool.append(tmp_path, "outcome", as_row(outcome(7)))
        own = list(tmp_path.glob("spool-*.jsonl"))
        assert len(own) == 1 and json.loads(own[0].read_text())["row"]["decision"] == "d7"
    assert Ledger(tmp_path).ingest() == (1, 0)
    assert not list(tmp_path.glob("spool-*.jsonl"))


FULL = """
mount -t tmpfs -o size=320k tmpfs "$1" && exec "$2" -I -c "$3" "$1"
"""
ON_A_FULL_DISK = """
import os, sys
from dataclasses import replace
from pathlib import Path
from nsbuild.rollout.decision import Decided
from nsbuild.rollout.ledger import Ledger
directory, said = Path(sys.argv[1]), []
ledger = Ledger(directory, said.append)
decided = Decided(id="0", app="a", path="direct", reason="off", decided=1.0)
one = decided.outcome("direct", "failed", started=1.0, seconds=1.0)
number = 0
while not said and number < 5000:
    ledger.record(replace(one, id=str(number), fallback="x" * 2000))
    number += 1
assert "lost" in said[0] and "No space left" in said[0], said
assert not (directory / "spool.jsonl").read_bytes() or (directory / "spool.jsonl").read_bytes().endswith(b"\\n")
os.system(f"mount -o remount,size=16m {directory}")
kept = {row.id for row in ledger.outcomes()}
assert kept == {str(each) for each in range(number - 1)}, (len(kept), number)
print("kept", len(kept))
"""


def test_a_full_disk_loses_only_what_is_said_to_be_lost(tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL, "sh", str(tmp_path)]
    done = subprocess.run([*command, sys.executable, ON_A_FULL_DISK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 10


@pytest.mark.parametrize("content", [b"this is no database" * 400, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_corrupt_ledger_is_set_aside_and_said_and_a_new_one_begun(tmp_path: Path, content: bytes) -> None:
    said: list[str] = []
    (tmp_path / NAME).write_bytes(content)
    ledger = Ledger(tmp_path, said.append)
    ledger.record(outcome())
    assert len(said) == 1 and "corrupt" in said[0] and "set aside" in said[0]
    aside = list(tmp_path.glob(f"{NAME}.corrupt-*"))
    assert [path.read_bytes() for path in aside] == [content]
    assert len(list(ledger.outcomes())) == 1


def test_a_ledger_with_a_bad_page_is_set_aside(tmp_path: Path) -> None:
    said: list[str] = []
    ledger = Ledger(tmp_path, said.append)
    with ledger:
        for number in range(200):
            ledger.record(outcome(number))
    data = bytearray((tmp_path / NAME).read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    (tmp_path / NAME).write_bytes(data)
    ledger.record(outcome(999))
    assert len(said) == 1
    assert [row.decision for row in ledger.outcomes()] == ["d999"]


def test_a_directory_that_cannot_be_written_fails_no_build(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file", said.append)
    ledger.record(outcome())
    assert len(said) == 1 and "lost" in said[0]
    with pytest.raises(Refused, match="cannot be used"):
        list(ledger.outcomes())


VERSION_1 = Path(__file__).parent / "ledger-1.sql"


def test_a_ledger_of_version_1_is_migrated_with_its_rows(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    connection.executescript(VERSION_1.read_text())
    connection.close()
    ledger = Ledger(tmp_path)
    assert [(row.app, row.result, row.diff, row.shadow) for row in ledger.outcomes()] == [
        ("shop", "same", {"time": 3}, True),
        ("blog", "failed", None, False),
    ]
    ledger.record(outcome(5))
    assert [row.decision for row in ledger.outcomes(after=2)] == ["d5"]
    assert [row.app for row in ledger.decisions()] == ["shop"]
    with sqlite3.connect(tmp_path / NAME) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        indexes = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    connection.close()
    assert {"outcome_decision", "outcome_app"} <= indexes


def test_a_migration_that_fails_leaves_the_version_before() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [*MIGRATIONS, "CREATE TABLE good (x); CREATE TABLE outcome (x)"])
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert not connection.execute("SELECT * FROM sqlite_master WHERE name = 'good'").fetchall()
    migrate(connection, [*MIGRATIONS, "CREATE TABLE good (x)"])
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
    connection.close()


def test_a_ledger_of_a_newer_nsbuild_is_left_alone_and_the_record_spooled(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(outcome(0))
    with sqlite3.connect(tmp_path / NAME, isolation_level=None) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    ledger.record(outcome(1))
    assert len((tmp_path / spool.NAME).read_text().splitlines()) == 1
    with pytest.raises(Refused, match="version 99"):
        list(ledger.outcomes())


def test_retention_removes_what_is_old_and_survives_a_clock_that_has_jumped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    now = time.time()
    for number, days in enumerate((100, 31, 29, 0)):
        ledger.record(outcome(number, started=now - days * 86400))
    monkeypatch.setattr(time, "time", lambda: now + 3650 * 86400)
    assert ledger.retain(30) == 2
    assert [row.decision for row in ledger.outcomes()] == ["d2", "d3"]


def test_a_writer_that_is_killed_leaves_a_ledger_that_works(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", WRITERS, str(tmp_path), "1", "100000"]
    writer = subprocess.Popen(command, start_new_session=True)
    ledger = Ledger(tmp_path)
    while not (tmp_path / NAME).exists() or len(list(ledger.outcomes())) < 20:
        assert writer.poll() is None
        time.sleep(0.02)
    os.killpg(writer.pid, signal.SIGKILL)
    writer.wait()
    ledger.record(outcome(1))
    rows = list(ledger.outcomes())
    assert [row.seconds for row in rows if row.app == "app-0"] == [float(each) for each in range(len(rows) - 1)]


def test_rows_survive_the_way_through_json() -> None:
    row = outcome(3)
    assert from_row(Outcome, json.loads(json.dumps(as_row(row)))) == row


def test_the_state_directory_is_the_named_one_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_directory() == tmp_path / "state/nsbuild/rollout"
    monkeypatch.setenv("NSBUILD_ROLLOUT_STATE", str(tmp_path / "shared"))
    assert state_directory() == tmp_path / "shared" and (tmp_path / "shared").is_dir()


def test_two_take_the_spools_in_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in count():
        directory = tmp_path / str(number)
        directory.mkdir()
        for name in ("spool-1-aa", "spool-2-bb", "spool"):
            line = json.dumps({"table": "outcome", "row": as_row(outcome(number, id=name))})
            (directory / f"{name}.jsonl").write_text(f"{line}\n")
        with monkeypatch.context() as patch:
            taken = meanwhile(patch, [(os, "open"), (fcntl, "flock")], number, Ledger(directory).ingest)
            Ledger(directory).ingest()
        assert len(list(Ledger(directory).outcomes())) == 3
        assert not spool.waiting(directory)
        if len(taken) <= number:
            break
    assert number > 3


def test_a_spool_that_is_made_again_while_it_is_taken_in_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "spool-1-aa.jsonl"
    line = json.dumps({"table": "outcome", "row": as_row(outcome(1))}).encode()

    def written() -> None:
        """By its writer, that had opened it before another has taken it in, and finds it removed."""
        spool.ingest(tmp_path, lambda lines: [])
        fd = spool._locked(own)
        os.write(fd, line + b"\n")
        os.close(fd)

    own.touch()
    taken = meanwhile(monkeypatch, [(spool.fcntl, "flock")], 0, written)  # type: ignore[attr-defined]
    Ledger(tmp_path).ingest()
    monkeypatch.undo()
    assert taken
    assert len(list(Ledger(tmp_path).outcomes())) == 1


def test_a_row_that_is_written_while_the_ledger_is_set_aside_is_in_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(tmp_path).record(outcome(1))

    def set_aside() -> None:
        """For a page of another table: what is written meets no damage."""
        damaged = bytearray((tmp_path / NAME).read_bytes())
        damaged[4096:8192] = b"\xff" * 4096
        (tmp_path / NAME).write_bytes(damaged)
        Ledger(tmp_path)._set_aside()

    taken = meanwhile(monkeypatch, [(ledger_module, "_write")], 0, set_aside)
    Ledger(tmp_path).record(outcome(1000))
    monkeypatch.undo()
    assert taken and len(list(tmp_path.glob("*.corrupt-*Z-????"))) == 1
    Ledger(tmp_path).record(outcome(1001))
    assert [row.decision for row in Ledger(tmp_path).outcomes()] == ["d1000", "d1001"]
