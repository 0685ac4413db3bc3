"""The ledger's tables, by numbered migrations, and its rows as values. SQLite's `user_version` is the version."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from nsbuild.rollout.decision import Decided, Outcome

MIGRATIONS = (
    # 1. A migration that was released is never changed again: the next one is added below.
    """
    CREATE TABLE decision (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, app TEXT NOT NULL, path TEXT NOT NULL,
        reason TEXT NOT NULL, decided REAL NOT NULL, rule TEXT NOT NULL, bucket INTEGER, flags TEXT NOT NULL,
        problem TEXT NOT NULL, host TEXT NOT NULL, stack TEXT NOT NULL, team TEXT NOT NULL,
        buildpacks TEXT NOT NULL, nsbuild TEXT NOT NULL
    );
    CREATE TABLE outcome (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, decision TEXT NOT NULL, app TEXT NOT NULL,
        path TEXT NOT NULL, arm TEXT NOT NULL, result TEXT NOT NULL, started REAL NOT NULL, seconds REAL NOT NULL,
        shadow INTEGER NOT NULL, reason TEXT NOT NULL, exit_code INTEGER, namespace_exit_code INTEGER,
        fallback TEXT NOT NULL, leaks INTEGER, slug_bytes INTEGER, diff TEXT, boot TEXT NOT NULL,
        flags TEXT NOT NULL, host TEXT NOT NULL, stack TEXT NOT NULL, buildpacks TEXT NOT NULL,
        nsbuild TEXT NOT NULL
    )
    """,
    # 2. A guard reads an app's rows, and a shadow's pair.
    """
    CREATE INDEX outcome_decision ON outcome (decision);
    CREATE INDEX outcome_app ON outcome (app)
    """,
    # 3. What the guard compares by.
    """
    ALTER TABLE decision ADD COLUMN share REAL;
    ALTER TABLE outcome ADD COLUMN share REAL
    """,
    # 4. Where the guard has stopped the rollout, and where it has begun to look again.
    """
    CREATE TABLE mark (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL, at REAL NOT NULL, after INTEGER NOT NULL,
        outcome INTEGER NOT NULL
    )
    """,
)

TABLES: dict[str, type[Decided] | type[Outcome]] = {"decision": Decided, "outcome": Outcome}
Row = TypeVar("Row", Decided, Outcome)


class NewerLedger(Exception):
    """A newer nsbuild has made it: this one does not know its tables."""


def migrate(connection: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring the tables up to date, in one transaction. Raises NewerLedger and sqlite3.Error."""
    if _version(connection) == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)  # somebody else may have been quicker
        if version > len(migrations):
            raise NewerLedger(f"version {version}, this nsbuild knows {len(migrations)}")
        for number, script in enumerate(migrations[version:], version + 1):
            # Not executescript(), which commits first.
            for statement in script.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def table_of(value: Decided | Outcome) -> str:
    return "decision" if isinstance(value, Decided) else "outcome"


def as_row(value: Decided | Outcome) -> dict[str, Any]:
    """A value as its table, or a line of the spool, has it."""
    row = {field.name: getattr(value, field.name) for field in fields(value) if field.name != "seq"}
    for name, text in row.items():
        if isinstance(text, str):  # a path in a sentence holds any bytes, and SQLite takes UTF-8
            row[name] = text.encode("utf-8", "backslashreplace").decode()
    row["buildpacks"] = json.dumps(row["buildpacks"])
    if row.get("diff") is not None:
        row["diff"] = json.dumps(dict(row["diff"]))
    return row


def from_row(kind: type[Row], row: Mapping[str, Any]) -> Row:
    """The value of a row, or of a line that an older nsbuild has spooled. Raises TypeError and ValueError."""
    values = {field.name: row[field.name] for field in fields(kind) if field.name in row}
    values["buildpacks"] = tuple(json.loads(values.get("buildpacks", "[]")))
    if issubclass(kind, Outcome):
        values["shadow"] = bool(values.get("shadow"))
        values["diff"] = json.loads(values["diff"]) if values.get("diff") is not None else None
    return kind(**values)


def insert(connection: sqlite3.Connection, value: Decided | Outcome) -> None:
    """Add a row; one that is there already, by its id, is left as it is. Raises sqlite3.Error."""
    table, row = table_of(value), as_row(value)
    # Not OR IGNORE, which would also drop a row that lacks something, without a word.
    connection.execute(
        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"
        " ON CONFLICT (id) DO NOTHING",
        row,
    )
