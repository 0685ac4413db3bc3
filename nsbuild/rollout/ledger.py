"""The ledger: every decision and every outcome, in SQLite. That it cannot be written never fails a build.

A record goes into the database (WAL, one short transaction), else into the spool beside it, to be ingested later. One
process's Ledger must not be used across a fork.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from nsbuild.errors import Refused
from nsbuild.rollout import spool
from nsbuild.rollout.decision import Decided, Decision, Mark, Outcome, Settled
from nsbuild.rollout.schema import MIGRATIONS, TABLES, NewerLedger, Row, as_row, from_row, insert, migrate, table_of
from nsbuild.tree.flock import flock_within

NAME = "ledger.sqlite"
STATE_VARIABLE = "NSBUILD_ROLLOUT_STATE"
_LOCK = "ledger.lock"
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_TYPE = (sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""What a value raises whose type SQLite has not."""
_TROUBLE = (sqlite3.Error, OSError, NewerLedger)


Result = TypeVar("Result")


def state_directory() -> Path:
    """Where ledger, spool and the last good flags are: $NSBUILD_ROLLOUT_STATE, else below the user's state.

    It is made. Raises OSError when it cannot be.
    """
    from nsbuild.wrap.journal import state_directory

    named = os.environ.get(STATE_VARIABLE, "")
    directory = Path(named).absolute() if named else Path(state_directory()).parent / "rollout"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


class Ledger:
    """The ledger in `directory`, which exists. `say` gets a sentence whenever a person should know something.

    Within `with` one connection is kept; without, each call has its own.
    """

    def __init__(
        self, directory: Path, say: Callable[[str], None] = lambda sentence: None, *, timeout: float = 2.0
    ) -> None:
        self.directory = directory
        self.path = directory / NAME
        self._say = say
        self._timeout = timeout
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._kept = False

    def __enter__(self) -> Ledger:
        self._kept = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept = False
        self._close()

    def decided(self, decision: Decision) -> Decided:
        """Give the decision an id and a time, and record it. Never raises for the ledger's sake."""
        attributes = decision.attributes

        def text(name: str) -> str:
            value = attributes.get(name, "")
            return value if isinstance(value, str) else ",".join(value)

        buildpacks = attributes.get("buildpacks", ())
        made = Decided(
            **{field.name: getattr(decision, field.name) for field in fields(Settled)},
            id=os.urandom(16).hex(),
            decided=time.time(),
            host=text("host"),
            stack=text("stack"),
            team=text("team"),
            buildpacks=(buildpacks,) if isinstance(buildpacks, str) else tuple(buildpacks),
        )
        self.record(made)
        return made

    def record(self, value: Decided | Outcome) -> None:
        """Keep a row: in the database, else in the spool, else say that it is lost. Never raises for their sake."""
        try:
            self._mended(lambda connection: _write(connection, value))
        except _TROUBLE as trouble:
            try:
                spool.append(self.directory, table_of(value), as_row(value))
            except OSError as error:
                self._say(f"A rollout record is lost: {self.path}: {trouble}; its spool: {error.strerror}.")
            return
        try:
            if spool.waiting(self.directory):
                self.ingest()
        except Refused:
            return  # it waits for the next record, or for `rollout recover`

    def ingest(self) -> tuple[int, int]:
        """Take in what the spool holds: (rows, lines without meaning, kept in spool.rejected).

        Raises Refused; nothing is lost then, and no row is ever there twice.
        """

        def take(lines: list[spool.Line]) -> list[bytes]:
            return self._mended(lambda connection: _take(connection, lines)) if lines else []

        try:
            return spool.ingest(self.directory, take)
        except _TROUBLE as trouble:
            raise Refused(f"The spool in {self.directory} cannot be taken in: {trouble}.") from None

    def decisions(self, after: int = 0) -> Iterator[Decided]:
        """Every decision whose row's number is above `after`, in order. Raises Refused."""
        return self._rows(Decided, after)

    def outcomes(self, after: int = 0) -> Iterator[Outcome]:
        """Every outcome whose row's number is above `after`, in order. Raises Refused."""
        return self._rows(Outcome, after)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """What a SELECT finds, the spool taken in before. Raises Refused."""
        return self._reading(lambda connection: connection.execute(sql, tuple(parameters)).fetchall())

    def marks(self) -> list[Mark]:
        """What the guard has done, in order. Raises Refused."""
        return [Mark(*row) for row in self.query("SELECT event, at, after, outcome FROM mark ORDER BY seq")]

    def mark(self, event: str, after: int, marks: int) -> None:
        """Keep that the guard has done it, having looked at the outcomes above `after`. Raises Refused.

        Only while there are so many `marks`: another check has done it when there are more.
        """
        statement = "INSERT INTO mark (event, at, after, outcome) SELECT ?, ?, ?, "
        statement += "(SELECT coalesce(max(seq), 0) FROM outcome) WHERE (SELECT count(*) FROM mark) = ?"
        self.query(statement, (event, time.time(), after, marks))

    def retain(self, days: float) -> int:
        """Remove what is older than that many days; how many rows. Raises Refused.

        Age is counted from the newest row or from now, whichever is earlier: a clock that has jumped ahead must not
        empty the ledger.
        """

        def prune(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            removed = 0
            for table, when in (("decision", "decided"), ("outcome", "started")):
                newest = connection.execute(f"SELECT max({when}) FROM {table}").fetchone()[0] or 0.0
                oldest = min(newest, time.time()) - days * 86400
                removed += connection.execute(f"DELETE FROM {table} WHERE {when} < ?", (oldest,)).rowcount
            connection.execute("COMMIT")
            return removed

        return self._reading(prune)

    def _rows(self, kind: type[Row], after: int) -> Iterator[Row]:
        table = next(name for name, known in TABLES.items() if known is kind)

        def select(connection: sqlite3.Connection) -> list[sqlite3.Row]:
            cursor = connection.cursor()
            cursor.row_factory = sqlite3.Row
            return cursor.execute(f"SELECT * FROM {table} WHERE seq > ? ORDER BY seq", (after,)).fetchall()

        return (from_row(kind, dict(row)) for row in self._reading(select))

    def _reading(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            if spool.waiting(self.directory):
                self.ingest()
        except Refused as trouble:
            self._say(f"{trouble} It is not counted.")
        try:
            return self._mended(work)
        except _TROUBLE as trouble:
            raise Refused(f"The rollout's ledger {self.path} cannot be used: {trouble}.") from None

    def _mended(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do it, and once more with a new ledger when the old one is corrupt. Raises one of _TROUBLE."""
        try:
            return self._once(work)
        except sqlite3.DatabaseError as error:
            if not _is_broken(error):
                raise
        self._set_aside()
        return self._once(work)

    def _once(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        try:
            while True:
                if self._connection is None:
                    before = self._identity()
                    self._connection = self._open()
                    self._opened = before or self._identity()
                result = work(self._connection)
                if self._identity() == self._opened:
                    return result
                self._close()  # set aside meanwhile, with what we have done: once more, in the new one
        except BaseException:
            self._close()  # rolls back
            raise
        finally:
            if not self._kept:
                self._close()

    def _identity(self) -> tuple[int, int] | None:
        try:
            info = os.stat(self.path)
        except FileNotFoundError:
            return None
        return info.st_dev, info.st_ino

    def _open(self) -> sqlite3.Connection:
        # None: BEGIN and COMMIT are ours.
        connection = sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("PRAGMA user_version").fetchone()[0] != len(MIGRATIONS):
                # SQLite does not wait for another process that changes to WAL too: one after the other.
                with self._locked():
                    connection.execute("PRAGMA journal_mode = WAL")
                    migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _set_aside(self) -> None:
        with self._locked():
            connection = sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None)
            try:
                if connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok":
                    return  # somebody else has set it aside meanwhile
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):
                    raise
            finally:
                connection.close()
            aside = f"{self.path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(2).hex()}"
            for suffix in ("-wal", "-shm", ""):
                try:
                    os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
                except FileNotFoundError:
                    continue
        self._say(f"The rollout's ledger {self.path} is corrupt: it was set aside as {aside}, and a new one begun.")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock_within(fd, self._timeout)
            yield
        finally:
            os.close(fd)


def _is_broken(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _BROKEN


def _write(connection: sqlite3.Connection, value: Decided | Outcome) -> None:
    connection.execute("BEGIN IMMEDIATE")
    insert(connection, value)
    connection.execute("COMMIT")


def _take(connection: sqlite3.Connection, lines: list[spool.Line]) -> list[bytes]:
    """Add the spool's lines in one transaction; returns those that are no rows."""
    useless = []
    connection.execute("BEGIN IMMEDIATE")
    for line, table, row in lines:
        try:
            insert(connection, from_row(Outcome, row) if TABLES[table] is Outcome else from_row(Decided, row))
        except (KeyError, TypeError, ValueError, sqlite3.IntegrityError, *_NO_TYPE):
            useless.append(line)
    connection.execute("COMMIT")
    return useless
