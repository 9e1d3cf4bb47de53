"""The channel from the model to a task's post-processor.

lmms-eval hands `process_results` a document and strings, in threads, after the model is gone, and may answer from its
response cache without asking the model at all. So the model writes what it measured into a store, and the
post-processor reads it there:

- the model opens the store of its settings (weights, plan, prompt template, …) and makes it the current one;
- a task's `process_docs`, which lmms-eval calls after the model is made, adds two columns to each document: `uid`, a
  hash of its text and picture, and `trace_store`, the current store's key;
- the post-processor looks the document's `uid` up in that store. What this process measured comes first; for an answer
  that lmms-eval's cache gave, the record of an earlier run is read from disk, provided that only one prompt was ever
  used for the document. Otherwise there is no record, and the metric says so.

A store is one SQLite file under the cache folder, so processes and later runs can share it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.stops import ending_the_run
from lmms_textweighted.paths import cache_folder

_PATIENCE = 60  # seconds that a store waits for another process's write
_OPEN: dict[str, TraceStore] = {}
_CURRENT: list[str] = []


class TraceStore:
    """Records of one model's settings: `put` and `get` by document and prompt."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """The store of these settings. Nothing is on disk before a task asks for it."""
        self.settings = json.dumps(settings, sort_keys=True)
        self.key = hashlib.sha256(self.settings.encode()).hexdigest()[:16]
        self.path: Path | None = None
        # uid -> prompts of this process. The records themselves are on disk alone: a run may have many thousands.
        self._fresh: dict[str, set[str]] = {}

    def open(self) -> Path:
        """Its file, made where it is not there. Raises InputError when the cache folder cannot be written."""
        if self.path is not None:
            return self.path
        path = cache_folder() / "traces" / f"{self.key}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=_PATIENCE)) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS traces (uid TEXT, prompt TEXT, record TEXT, PRIMARY KEY (uid, prompt))"
                )
                database.execute("CREATE TABLE IF NOT EXISTS settings (value TEXT PRIMARY KEY)")
                database.execute("INSERT OR IGNORE INTO settings VALUES (?)", (self.settings,))
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"cache folder {str(path.parent)!r} cannot be written ({error}): set LMMS_TEXTWEIGHTED_CACHE"
            ) from error
        self.path = path
        return path

    def put(self, uid: str, prompt: str, record: dict[str, Any]) -> None:
        """Keep one document's record on disk."""
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
        with closing(self._connect()) as database, database:
            database.execute("INSERT OR REPLACE INTO traces VALUES (?, ?, ?)", (uid, digest, json.dumps(record)))
        self._fresh.setdefault(uid, set()).add(digest)

    def get(self, uid: str) -> dict[str, Any] | None:
        """This process's record, or the one on disk; None when there is none, or several prompts have one."""
        with closing(self._connect()) as database:
            rows = dict(database.execute("SELECT prompt, record FROM traces WHERE uid = ?", (uid,)).fetchall())
        own = self._fresh.get(uid)
        found = [rows[prompt] for prompt in own] if own else list(rows.values())
        return json.loads(found[0]) if len(found) == 1 else None

    def _connect(self) -> sqlite3.Connection:
        # A connection a call: post-processing runs in threads, and a connection belongs to one.
        return sqlite3.connect(self.open(), timeout=_PATIENCE)


def make_current(store: TraceStore) -> None:
    """From now on new documents belong to this store. The model calls it when it is made."""
    _OPEN[store.key] = store
    _CURRENT[:] = [store.key]


def leave_current(store: TraceStore) -> None:
    """The model is done: documents of a next model, which may not be ours, must not find this store."""
    if [store.key] == _CURRENT:
        _CURRENT.clear()


def current_key() -> str:
    """The current store's key, or "" when the model is not ours. A store that cannot be written ends the run."""
    if not _CURRENT:
        return ""
    with ending_the_run():
        _OPEN[_CURRENT[0]].open()
    return _CURRENT[0]


def find_record(store_key: str, uid: str) -> dict[str, Any] | None:
    """What the model measured on a document, or None."""
    store = _OPEN.get(store_key)
    return store.get(uid) if store is not None else None
