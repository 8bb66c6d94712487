"""Every measurement in one SQLite file: the cache, the lab's report, and a table to take away.

Kernels and threads may use one journal at once: every call opens the file, does one short transaction and closes it, so
nothing is lost when a process is killed. The first Result recorded under a key stays. Nothing is recorded whose code
the key cannot name, such as a class of a notebook, so that no point is ever stale (see `fingerprints`).

SQLite, "Atomic Commit In SQLite", sqlite.org/atomiccommit.html.
"""

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pandas as pd

from compresslab import checks, paths, writing
from compresslab.experiments import fingerprints

SCHEMA = 2  # of the tables below; a file with a lower one is put aside
ALGORITHM = 2  # part of every key: raise it when training or measuring changes, so that old numbers are not reused
APPLICATION = 0x636C6162  # "clab", SQLite's application_id: this file is a journal
STAGES = ("one-shot", "retrained")
ROOM = 2**28  # bytes of models that a journal keeps; the one that was not used for longest goes first
MEMORY_ROOM = 2**23  # the same, of a journal that has only memory
_WAIT = 30  # seconds for another process to finish its transaction
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@dataclass(frozen=True)
class Result:
    """One measured point, with all that its numbers depend on."""

    technique: str
    setting: dict  # complete, by parameter name
    stage: str  # "one-shot", measured right after compressing, or "retrained"
    accuracy: float  # fraction of the images of `split` that are right, 0 to 1
    file_bytes: int  # of the .clab file
    parameters: int
    nonzeros: int
    seconds: float  # spent in compressing, training and measuring up to here
    seed: int
    steps: int  # of the training, 0 for one-shot
    model: str  # the name of what was compressed
    data: str  # the name of the data that it was trained and measured on
    split: str = "validation"
    precision: str = "fp32"  # arithmetic of the training: "bf16+channels_last", …
    versions: dict = field(default_factory=dict)  # {"torch": "2.15.0", …}; "technique": the fingerprint of its code
    created: str = ""  # when it was measured, ISO 8601, UTC
    lr: float | None = 0.0  # of the training; None where `train.fit` found it, 0 for one-shot
    batch_size: int = 0
    model_fingerprint: str = ""  # SHA-256 of the network before compression
    data_fingerprint: str = ""  # SHA-256 of the data

    @property
    def key(self) -> str:
        """SHA-256 (hex) of all that the numbers depend on; 1 and 1.0 are equal."""
        names = ("technique", "setting", "stage", "seed", "steps", "split", "precision", "lr", "batch_size")
        content = {name: getattr(self, name) for name in names}
        content["model"] = self.model_fingerprint or self.model
        content["data"] = self.data_fingerprint or self.data
        versions = [self.versions.get(name) for name in ("torch", "technique", "device", "compresslab")]
        content["code"] = [ALGORITHM, *versions]
        text = json.dumps(_unify_numbers(plain("setting", content)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def reusable(self) -> bool:
        """Tell whether the key names all code that the numbers depend on."""
        return fingerprints.UNNAMED not in f"{self.model_fingerprint} {self.versions.get('technique')}"


def training_of(trial: object) -> dict:
    """Return the training of a Trial, or of a Result, as a dict."""
    return {name: getattr(trial, name) for name in ("steps", "lr", "batch_size", "precision")}


_TYPES = {str: "TEXT", dict: "TEXT", float: "REAL", float | None: "REAL", int: "INTEGER"}
_COLUMNS = {column.name: _TYPES[column.type] for column in fields(Result)}
_JSON = [column.name for column in fields(Result) if column.type is dict]
_FILTERS = [name for name in _COLUMNS if name not in _JSON]
_NAMES = ", ".join(_COLUMNS)
_SELECT = f"SELECT {_NAMES} FROM results"
_DECLARED = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
_TABLES = (
    (f"CREATE TABLE results (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, {_DECLARED})", []),
    ("CREATE TABLE models (key TEXT PRIMARY KEY, used REAL NOT NULL, file BLOB NOT NULL)", []),
    (f"PRAGMA application_id = {APPLICATION}", []),
    (f"PRAGMA user_version = {SCHEMA}", []),
)


class _UnusableError(sqlite3.DatabaseError):
    """The file is damaged, or of an older compresslab; arguments: the reason in words, an ending for its new name."""


def open(path: str | os.PathLike | None = None) -> "Journal":  # noqa: A001 - part of the package's vocabulary
    """Open the journal at `path`; by default `journal.sqlite` in COMPRESSLAB_HOME or the user's cache folder.

    A damaged file, or one of an older compresslab, is put aside, with a warning, and a new one is begun.
    raises  OSError (PermissionError) naming the path if it cannot be written; ValueError if the file is not a journal,
            or was written by a newer compresslab
    """
    return Journal(paths.home() / "journal.sqlite" if path is None else path)


def open_or_forget(journal: "Journal | str | os.PathLike | None" = None) -> "ForgetfulJournal":
    """Open a journal that goes on in memory where its file cannot be written.

    journal  a Journal, a path, or None for the default one, which may be in memory from the start
    raises   as `open` does for a path
    """
    if isinstance(journal, Journal):
        return ForgetfulJournal(journal.path)
    try:
        return ForgetfulJournal(open(journal).path)
    except OSError as error:
        if journal is not None:
            raise
        return ForgetfulJournal(None, error)


class Journal:
    """The Results in one file; see `open`. Threads may share it; len() counts the Results."""

    def __init__(self, path: str | os.PathLike):
        self.path, self.room = Path(path).expanduser().absolute(), ROOM  # bytes of models that are kept
        with _explain_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path.parent).close()  # SQLite needs to write beside the file, too
            effective = os.access in os.supports_effective_ids
            if self.path.exists() and not os.access(self.path, os.W_OK, effective_ids=effective):
                raise PermissionError("the file is read-only")
        self._run(check="quick_check")

    def record(self, result: Result) -> Result:
        """Keep a Result unless its key is taken; return the Result kept.

        One that is not `reusable` is returned as it is, and not kept.
        """
        checks.choice("result.stage", result.stage, STAGES)
        if not math.isfinite(result.accuracy) or not math.isfinite(result.seconds):
            raise ValueError(f"result has accuracy {result.accuracy} and seconds {result.seconds}; both must be finite")
        if not result.reusable:
            return result
        values = {name: plain(name, value) for name, value in asdict(result).items()}
        row = [result.key, *(json.dumps(value) if name in _JSON else value for name, value in values.items())]
        insert = f"INSERT OR IGNORE INTO results (key, {_NAMES}) VALUES ({', '.join('?' * len(row))})"
        return _to_results(self._run((insert, row), (f"{_SELECT} WHERE key = ?", row[:1])))[0]

    def find(self, key: str) -> Result | None:
        """Return the Result with this key, or None."""
        return next(iter(_to_results(self._run((f"{_SELECT} WHERE key = ?", [key])))), None)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the Results with these keys, and the models kept under them."""
        tables = ("results", "models")
        self._run(*((f"DELETE FROM {table} WHERE key = ?", [key]) for key in keys for table in tables))

    def keep_model(self, key: str, file: bytes) -> None:
        """Keep a model's .clab file under a Result's key; the least recently used make room."""
        insert = "INSERT OR REPLACE INTO models VALUES (?, ?, ?)"
        totals = "SELECT key, sum(length(file)) OVER (ORDER BY used DESC, key) AS total FROM models"
        delete = f"DELETE FROM models WHERE key IN (SELECT key FROM ({totals}) WHERE total > ?)"
        if len(file) <= self.room:
            self._run((insert, [key, time.time(), file]), (delete, [self.room]))

    def find_model(self, key: str) -> bytes | None:
        """Return the bytes that were kept under this key, or None."""
        update, select = "UPDATE models SET used = ? WHERE key = ?", "SELECT file FROM models WHERE key = ?"
        rows = self._run((update, [time.time(), key]), (select, [key]))
        return rows[0][0] if rows else None

    def results(self, **filters) -> list[Result]:
        """Return all Results whose fields equal `filters` (technique="zero_pruning", …), newest last."""
        for name in filters:
            checks.choice("filter", name, _FILTERS)
        condition = f"WHERE {' AND '.join(f'{name} IS ?' for name in filters)}" if filters else ""
        return _to_results(self._run((f"{_SELECT} {condition} ORDER BY id", list(filters.values()))))

    def to_frame(self, **filters) -> pd.DataFrame:
        """Return the Results as a DataFrame, newest last; filters as in `results`."""
        return frame(self.results(**filters))

    def to_csv(self, path: str | os.PathLike, **filters) -> Path:
        """Write `to_frame` to a CSV file, completely or not at all; return its path."""
        return write_csv(self.to_frame(**filters), path)

    def __len__(self):
        return self._run(("SELECT count(*) FROM results", []))[0][0]

    def __repr__(self):
        return f"Journal({str(self.path)!r})"

    def _run(self, *statements, check=""):
        """Run statements (SQL, values) in a transaction; return the rows of the last.

        Where the file is unusable, they run in a new one.
        """
        with _explain_errors(self.path):
            try:
                return _transact(self.path, statements, check)
            except _UnusableError:
                _set_aside(self.path)
            return _transact(self.path, statements)


class ForgetfulJournal(Journal):
    """A Journal that goes on in memory, until the process ends, once its file cannot be used.

    path  None for memory alone;  problem  why the file cannot be used, or None
    """

    def __init__(self, path: Path | None, problem: OSError | None = None):
        self.path, self.room, self.problem = path, ROOM, None
        self._memory, self._lock, self._tell = None, threading.Lock(), lambda problem: None
        if problem is not None:
            self._forget(problem)

    def tell_problem(self, tell: Callable) -> None:
        """Call tell(problem) when the file cannot be used any more, or now."""
        self._tell = tell
        if self.problem is not None:
            tell(self.problem)

    def _run(self, *statements, check=""):
        if self._memory is None:
            try:
                return super()._run(*statements, check=check)
            except OSError as error:
                self._forget(error)
        with self._lock:
            return _execute(self._memory, statements)

    def _forget(self, problem):
        with self._lock:
            if self._memory is not None:  # another thread met the same
                return
            memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            _execute(memory, _TABLES)
            self._memory, self.problem, self.room = memory, problem, MEMORY_ROOM
        self._tell(problem)


def frame(results: Iterable[Result]) -> pd.DataFrame:
    """Put Results, any iterable of them, into a DataFrame with a column for every parameter.

    A parameter named as another column ("seed") has its column as "setting.seed".
    """
    results = list(results)
    head, tail = ["technique", "model", "data", "stage"], ["steps", "seed", "accuracy", "file_bytes", "parameters"]
    tail += ["nonzeros", "seconds", "created"]
    tail += [name for name in _COLUMNS if name not in (*head, *tail, "setting")] + ["key"]
    names = dict.fromkeys(name for result in results for name in result.setting)
    columns = {name: f"setting.{name}" if name in (*head, *tail) else name for name in names}
    rows = []
    for result in results:
        versions = "; ".join(f"{name} {version}" for name, version in result.versions.items())
        row = asdict(result) | {"versions": versions, "key": result.key}
        rows.append(row | {columns[name]: value for name, value in result.setting.items()})
    return pd.DataFrame(rows, columns=[*head, *columns.values(), *tail])


def write_csv(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a DataFrame to a CSV file, completely or not at all."""
    path = Path(path).expanduser().absolute()
    try:
        writing.write_file(path, table.to_csv(index=False).encode())
    except OSError as error:
        raise type(error)(f"{path} cannot be written ({error}); what was there before is unchanged") from error
    return path


def plain(name: str, value: object) -> object:
    """Return a setting's value as plain Python, as it comes back from the journal.

    raises   ValueError for anything but numbers, text, bool, None, and lists and dicts of them
    """
    if hasattr(value, "tolist"):  # NumPy's and torch's numbers and arrays
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (list, tuple)):
        return [plain(name, item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(name, item) for key, item in value.items()}
    allowed = "numbers, text, True, False, None, and lists or dicts of them"
    raise ValueError(f"{name} is {value!r}; a setting holds {allowed}")


def _unify_numbers(value):
    """Turn whole floats into ints, so that equal settings are written the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_unify_numbers(item) for item in value]
    return {key: _unify_numbers(item) for key, item in value.items()} if isinstance(value, dict) else value


def _to_results(rows):
    named = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    return [Result(**(row | {name: json.loads(row[name]) for name in _JSON})) for row in named]


def _transact(path, statements, check=""):
    """Run statements in a transaction, in a file with all tables; return the last rows.

    check   a pragma that looks the whole file over first: "quick_check", "integrity_check"
    raises  _UnusableError for a file that is damaged or old
    """
    with contextlib.closing(sqlite3.connect(path, timeout=_WAIT, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")  # one process at a time; closing rolls back what was not committed
            if _is_empty(connection, path):
                _execute(connection, _TABLES)
            if check and (problem := connection.execute(f"PRAGMA {check}(1)").fetchone()[0]) != "ok":
                raise _UnusableError(f"is damaged ({problem})", "damaged")
            rows = _execute(connection, statements)
            connection.execute("COMMIT")
            return rows
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                raise
            raise _UnusableError(f"is damaged ({error})", "damaged") from error


def _execute(connection, statements):
    rows = []
    for statement, values in statements:
        rows = connection.execute(statement, values).fetchall()
    return rows


def _is_empty(connection, path):
    """Tell whether the file is empty; raise for another kind of file or version."""
    questions = "PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master"
    application, version, tables = (connection.execute(question).fetchone()[0] for question in questions)
    if application == version == tables == 0:
        return True
    if application != APPLICATION:
        raise ValueError(f"{path} is an SQLite file of something else, not a journal; give another path")
    if version > SCHEMA:
        newer = f"{path} was written by a newer compresslab (schema {version}, this one knows {SCHEMA})"
        raise ValueError(f"{newer}; update compresslab, or set COMPRESSLAB_HOME to another folder")
    if version < SCHEMA:
        raise _UnusableError("was written by an older compresslab", "old")
    return False


def _set_aside(path):
    """Rename a journal that cannot be used, unless another process has already done so.

    An empty SQLite file beside it is the lock, which the system releases when a process dies.
    """
    with contextlib.closing(sqlite3.connect(f"{path}.repair", timeout=_WAIT, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        try:
            return _transact(path, (), check="integrity_check")
        except _UnusableError as error:
            reason, kind = error.args
        copy = f"{path}.{time.strftime('%Y%m%d')}-{time.time_ns()}.{kind}"
        for ending in ("-journal", "-wal", "-shm", ""):  # the file last: a new one must not meet the old one's journal
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{ending}", f"{copy}{ending}")
    reason = " ".join(reason.split())
    warnings.warn(f"{path} {reason}; it was kept as {copy}, and a new one is begun", stacklevel=6)


@contextlib.contextmanager
def _explain_errors(path) -> Iterator[None]:
    """Turn errors into ones that name the file and say what to do."""
    hint = "set COMPRESSLAB_HOME to a folder you can write to, or give another path"
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind = PermissionError if code in _UNWRITABLE else OSError
        raise kind(f"the journal {path} cannot be used: {error}; {hint}") from error
    except OSError as error:
        hint = "" if "COMPRESSLAB_HOME" in str(error) else f"; {hint}"
        raise type(error)(f"the journal {path} cannot be used: {error}{hint}") from error
