"""The sandbox's state: one SQLite database and a store of contents, in one folder."""

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sandbox.blobs import Blobs
from sandbox.schema import SCHEMA

TEAM_ID = 1
WORKSPACE_ID = 1
USER_ID = 1
USER_LOGIN = "sandbox"


def now() -> str:
    """The present time as an instance writes it, e.g. ``2025-01-31T09:15:00.123Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dump(value: object) -> str:
    """JSON text for a column."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Storage:
    """State under ``root``; safe to use from several threads.

    Args:
        root: Folder of the state, made if it is not there. Its content survives restarts.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.blobs = Blobs(root / "blobs")
        self._lock = threading.RLock()
        self._db = sqlite3.connect(root / "sandbox.sqlite", check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA foreign_keys=ON")
        self._db.executescript(SCHEMA)
        self._depth = 0
        self._seed()

    def _seed(self) -> None:
        moment = now()
        with self.transaction():
            self.run("INSERT OR IGNORE INTO teams VALUES (?,?,?,?,?)", TEAM_ID, "Sandbox team", "", moment, moment)
            self.run(
                "INSERT OR IGNORE INTO workspaces VALUES (?,?,?,?,?,?)",
                WORKSPACE_ID, TEAM_ID, "Sandbox workspace", "", moment, moment,
            )  # fmt: skip

    def close(self) -> None:
        """Close the database; the storage is of no use afterwards."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes of the block are kept together, or none if it raises. Blocks may be nested."""
        with self._lock:
            outermost = self._depth == 0
            if outermost:
                self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if outermost:
                    self._db.execute("ROLLBACK")
                raise
            self._depth -= 1
            if outermost:
                self._db.execute("COMMIT")

    def run(self, sql: str, *values: object) -> int:
        """Execute one statement and return the id of the row it inserted."""
        with self._lock:
            return self._db.execute(sql, values).lastrowid

    def all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def one(self, sql: str, *values: object) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        with self._lock:
            return self._db.execute(sql, values).fetchone()

    def value(self, sql: str, *values: object) -> object:
        """The first column of the first row of a query, or None."""
        row = self.one(sql, *values)
        return None if row is None else row[0]

    def token(self, wanted: str | None = None) -> str:
        """The API token: ``wanted`` if given, else the one of the last run, else a new one."""
        with self.transaction():
            token = wanted or self.value("SELECT value FROM settings WHERE key='token'") or secrets.token_hex(64)
            self.run("INSERT OR REPLACE INTO settings VALUES ('token', ?)", token)
        return token

    def touch_dataset(self, dataset_id: int) -> None:
        """Note that the content of a dataset has changed: the SDK's caches compare these times."""
        moment = now()
        self.run("UPDATE datasets SET updated_at=? WHERE id=?", moment, dataset_id)
        self.run(
            "UPDATE projects SET updated_at=? WHERE id=(SELECT project_id FROM datasets WHERE id=?)", moment, dataset_id
        )
