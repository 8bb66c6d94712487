"""Every measurement in one SQLite file: the cache, the lab's report, and a table to take away.

Many kernels and threads may use one journal at once: every call opens the file, does one short transaction and closes
it again, so nothing is lost when a process is killed. A Result is found by its key, which stands for everything that
the measurement depends on; the first one recorded under a key stays.

SQLite, "Atomic Commit In SQLite", sqlite.org/atomiccommit.html.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import sqlite3
import tempfile
import threading
import time
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pandas as pd

from compresslab import checks, paths, writing

SCHEMA = 2  # of the tables below; a higher one in a file was written by a newer compresslab
ALGORITHM = 2  # part of every key: raise it when training or measuring changes, so that old numbers are not reused
APPLICATION = 0x636C6162  # "clab", SQLite's application_id: this file is a journal
STAGES = ("one-shot", "retrained")
ROOM = 2**28  # bytes of models that a journal keeps; the one that was not used for longest goes first
MEMORY_ROOM = 2**23  # the same, of a journal that has only memory
_WAIT = 30  # seconds for another process to finish its transaction
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


@dataclass(frozen=True)
class Result:
    """One measured point.

    technique, setting    the technique's name and its full setting, by parameter name
    stage                 "one-shot", measured right after compressing, or "retrained"
    accuracy              fraction of the images of `split` that are right, 0 to 1
    file_bytes            bytes of the .clab file
    parameters, nonzeros  counts
    seconds               spent in compressing, training and measuring up to here
    seed, steps           of the training; steps is 0 for one-shot
    model, data, split    what was compressed, on what it was trained and measured (the names)
    precision             arithmetic of the training: "fp32", "bf16+channels_last", …
    lr, batch_size        of the training, 0 for one-shot; lr is None where `train.fit` found it
    versions              {"torch": "2.15.0", …}; "technique" is a digest of the technique's source
    created               when it was measured, ISO 8601, UTC
    model_fingerprint, data_fingerprint  SHA-256 of the network before compression, and of the data
    """

    technique: str
    setting: dict
    stage: str
    accuracy: float
    file_bytes: int
    parameters: int
    nonzeros: int
    seconds: float
    seed: int
    steps: int
    model: str
    data: str
    split: str = "validation"
    precision: str = "fp32"
    versions: dict = field(default_factory=dict)
    created: str = ""
    lr: float | None = 0.0
    batch_size: int = 0
    model_fingerprint: str = ""
    data_fingerprint: str = ""

    @property
    def key(self):
        """SHA-256 (hex) of everything that the measured numbers depend on; 1 and 1.0 count as the same."""
        names = ("technique", "setting", "stage", "seed", "steps", "split", "precision", "lr", "batch_size")
        told = {name: getattr(self, name) for name in names}
        told["model"] = self.model_fingerprint or self.model
        told["data"] = self.data_fingerprint or self.data
        told["code"] = [
            ALGORITHM,
            *(self.versions.get(name) for name in ("torch", "technique", "device", "compresslab")),
        ]
        return hashlib.sha256(json.dumps(_same_numbers(plain("setting", told)), sort_keys=True).encode()).hexdigest()


_TYPES = {str: "TEXT", dict: "TEXT", float: "REAL", float | None: "REAL", int: "INTEGER"}
_COLUMNS = {one.name: _TYPES[one.type] for one in fields(Result)}
_SCHEMA = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
_TABLE = f"CREATE TABLE results (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, {_SCHEMA})"
_MODELS = "CREATE TABLE models (key TEXT PRIMARY KEY, used REAL NOT NULL, file BLOB NOT NULL)"  # since schema 2
_JSON = [one.name for one in fields(Result) if one.type is dict]
_FILTERS = [name for name in _COLUMNS if name not in _JSON]


def open(path=None):  # noqa: A001 - the name is part of the package's vocabulary
    """Open the journal at `path`; by default `journal.sqlite` in COMPRESSLAB_HOME or the user's cache folder.

    A file that SQLite finds damaged is moved aside, with a warning that names the copy, and a new one is begun.
    raises  OSError (PermissionError) naming the path if it cannot be written; ValueError if the file is not a journal,
            or was written by a newer compresslab
    """
    return Journal(paths.home() / "journal.sqlite" if path is None else path)


def open_or_forget(journal=None):
    """Open a journal that never fails later: where its file cannot be written, it goes on in memory.

    journal  a Journal, a path, or None for the default one
    raises   as `open` does for a path; the default journal may be in memory from the start
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

    def __init__(self, path):
        self.path = Path(path).expanduser().absolute()
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path.parent).close()  # SQLite needs to write beside the file, too
        self._do(_upgrade, "IMMEDIATE", check="quick_check")
        with _explained(self.path):
            if not os.access(self.path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                raise PermissionError("the file is read-only")

    def record(self, result):
        """Keep a Result and return the one the journal now holds: an earlier one with the same key stays."""
        checks.choice("result.stage", result.stage, STAGES)
        if not math.isfinite(result.accuracy) or not math.isfinite(result.seconds):
            raise ValueError(f"result has accuracy {result.accuracy} and seconds {result.seconds}; both must be finite")
        names, row = ["key", *_COLUMNS], [result.key, *_row(result)]
        insert = f"INSERT OR IGNORE INTO results ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"

        def keep(file):
            file.execute(insert, row)
            return _read(file, "WHERE key = ?", row[:1])[0]

        return self._do(keep, "IMMEDIATE")

    def find(self, key):
        """The Result with this key, or None."""
        return next(iter(self._do(lambda file: _read(file, "WHERE key = ?", [key]))), None)

    def keep_model(self, key, file):
        """Keep the bytes of a model's .clab file under a key, one Result's; those not used for long make room."""

        def keep(connection):
            connection.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", [key, time.time(), file])
            kept = connection.execute("SELECT key, length(file) FROM models ORDER BY used DESC").fetchall()
            room = list(itertools.accumulate(size for _, size in kept))
            gone = [(name,) for (name, _), needed in zip(kept, room, strict=True) if needed > self.room]
            connection.executemany("DELETE FROM models WHERE key = ?", gone)

        if len(file) <= self.room:
            self._do(keep, "IMMEDIATE")

    @property
    def room(self):
        """Bytes of models that are kept."""
        return ROOM

    def find_model(self, key):
        """The bytes that were kept under this key, or None."""

        def find(connection):
            found = connection.execute("SELECT file FROM models WHERE key = ?", [key]).fetchone()
            connection.execute("UPDATE models SET used = ? WHERE key = ?", [time.time(), key])
            return found[0] if found else None

        return self._do(find, "IMMEDIATE")

    def results(self, **filters):
        """All Results whose fields equal `filters` (technique="zero_pruning", stage="retrained", …), newest last."""
        for name in filters:
            checks.choice("filter", name, _FILTERS)
        conditions = " AND ".join(f"{name} IS ?" for name in filters)
        condition = f"WHERE {conditions}" if filters else ""
        return self._do(lambda file: _read(file, condition, list(filters.values())))

    def to_frame(self, **filters):
        """The Results as a DataFrame, newest last, with a column for each parameter; filters as in `results`."""
        return frame(self.results(**filters))

    def to_csv(self, path, **filters):
        """Write `to_frame` to `path` and return it; an old file there stays whole until the new one is complete."""
        return write_csv(self.to_frame(**filters), path)

    def __len__(self):
        return self._do(lambda file: file.execute("SELECT count(*) FROM results").fetchone()[0])

    def __repr__(self):
        return f"Journal({str(self.path)!r})"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Nothing is held open between two calls, so there is nothing to let go; for `with` and for habit."""

    def _do(self, action, kind="DEFERRED", check=None):
        """What `action(connection)` returns, in one transaction; if the file turns out to be damaged, in a new file."""
        with _explained(self.path):
            try:
                return _transact(self.path, action, kind, check)
            except sqlite3.DatabaseError as error:
                if not _means_damage(error):
                    raise
            _move_damaged(self.path)
            return _transact(self.path, action, kind)


class ForgetfulJournal(Journal):
    """A Journal that goes on in memory, until the process ends, once its file cannot be used.

    path     of a journal that was opened; None for memory alone
    problem  why the file cannot be used, or None
    """

    def __init__(self, path, problem=None):
        self.path, self.problem = path, None
        self._memory, self._lock, self._tell = None, threading.Lock(), lambda problem: None
        if problem is not None:
            self._forget(problem)

    def tell_problem(self, tell):
        """Call tell(problem) when the file cannot be used any more; at once if it is so already."""
        self._tell = tell
        if self.problem is not None:
            tell(self.problem)

    def _do(self, action, kind="DEFERRED", check=None):
        if self._memory is None:
            try:
                return super()._do(action, kind, check)
            except OSError as error:
                self._forget(error)
        with self._lock:
            return action(self._memory)

    def _forget(self, problem):
        with self._lock:
            if self._memory is not None:  # another thread met the same
                return
            memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            memory.execute(_TABLE)
            memory.execute(_MODELS)
            self._memory, self.problem = memory, problem
        self._tell(problem)

    @property
    def room(self):
        return ROOM if self._memory is None else MEMORY_ROOM


def frame(results):
    """A DataFrame of Results, in their order, with a column for every parameter of their settings.

    results  any iterable of Result, such as `sweep.run` itself; a parameter named as another column ("seed") has its
             column as "setting.seed"
    """
    results = list(results)
    head, tail = ["technique", "model", "data", "stage"], ["steps", "seed", "accuracy", "file_bytes", "parameters"]
    tail += ["nonzeros", "seconds", "created"]
    tail += [name for name in _COLUMNS if name not in (*head, *tail, "setting")] + ["key"]
    names = dict.fromkeys(name for result in results for name in result.setting)
    columns = {name: f"setting.{name}" if name in (*head, *tail) else name for name in names}
    rows = [_spread(result) | {columns[name]: value for name, value in result.setting.items()} for result in results]
    return pd.DataFrame(rows, columns=[*head, *columns.values(), *tail])


def write_csv(table, path):
    """Write a DataFrame to a CSV file, complete or not at all; returns the path, raises OSError naming it."""
    path = Path(path).expanduser().absolute()
    try:
        writing.write_file(path, table.to_csv(index=False).encode())
    except OSError as error:
        raise type(error)(f"{path} cannot be written ({error}); what was there before is unchanged") from error
    return path


def plain(name, value):
    """A setting's value as plain Python, as it comes back from the journal: numbers, text, bool, None, lists, dicts.

    raises  ValueError naming the parameter for anything else
    """
    if hasattr(value, "tolist"):  # NumPy's and torch's numbers and arrays
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(name, item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(name, item) for key, item in value.items()}
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise ValueError(
        f"{name} is {value!r}; a setting holds numbers, text, True, False, None, and lists or dicts of them"
    )


def _same_numbers(value):
    """`value` with whole floats as ints, so that equal settings are written the same."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_same_numbers(item) for item in value]
    return {key: _same_numbers(item) for key, item in value.items()} if isinstance(value, dict) else value


def _row(result):
    """The values of `_COLUMNS`, as SQLite takes them."""
    values = {name: plain(name, value) for name, value in asdict(result).items()}
    return [json.dumps(value) if name in _JSON else value for name, value in values.items()]


def _read(file, condition, values):
    rows = file.execute(f"SELECT {', '.join(_COLUMNS)} FROM results {condition} ORDER BY id", values)
    named = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    return [Result(**(row | {name: json.loads(row[name]) for name in _JSON})) for row in named]


def _spread(result):
    row = {name: value for name, value in asdict(result).items() if name != "setting"}
    versions = "; ".join(f"{name} {version}" for name, version in result.versions.items())
    return row | {"versions": versions, "key": result.key}


def _transact(path, action, kind="DEFERRED", check=None):
    """Run `action(connection)` in a transaction of its own, in a file whose table is made if it is new.

    check  a pragma that looks the whole file over first: "quick_check", "integrity_check"
    """
    file = sqlite3.connect(path, timeout=_WAIT, isolation_level=None)
    with contextlib.closing(file):  # closing rolls back what was not committed
        file.execute(f"BEGIN {kind}")
        if _is_new(file, path):
            file.execute("ROLLBACK")
            file.execute("BEGIN IMMEDIATE")  # one process makes the table, the others wait and find it
            if _is_new(file, path):
                file.execute(_TABLE)
                file.execute(_MODELS)
                file.execute(f"PRAGMA application_id = {APPLICATION}")
                file.execute(f"PRAGMA user_version = {SCHEMA}")
        if check and (found := file.execute(f"PRAGMA {check}(1)").fetchone()[0]) != "ok":
            damage = sqlite3.DatabaseError(found)
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        answer = action(file)
        file.execute("COMMIT")
    return answer


def _upgrade(file):
    """Give a journal of schema 1 the table that it lacks."""
    if file.execute("PRAGMA user_version").fetchone()[0] < SCHEMA:
        file.execute(_MODELS)
        file.execute(f"PRAGMA user_version = {SCHEMA}")


def _means_damage(error):
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_new(file, path):
    """Whether the file is still empty; raises ValueError if it is not a journal, or a newer one."""
    application, version, tables = (
        file.execute(question).fetchone()[0]
        for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if application == version == tables == 0:
        return True
    if application != APPLICATION:
        raise ValueError(f"{path} is an SQLite file of something else, not a journal; give another path")
    if version > SCHEMA:
        newer = f"{path} was written by a newer compresslab (schema {version}, this one knows {SCHEMA})"
        raise ValueError(f"{newer}; update compresslab, or set COMPRESSLAB_HOME to another folder")
    return False


def _move_damaged(path):
    """Rename a damaged journal to a free name ….damaged, unless another process has already done so.

    An empty SQLite file beside it is the lock: the system lets go of it when a process dies.
    """
    lock = sqlite3.connect(f"{path}.repair", timeout=_WAIT, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        _transact(path, lambda file: None, check="integrity_check")
    except sqlite3.DatabaseError as error:
        if not _means_damage(error):
            raise
        copy = _free_name(path)
        for ending in ("-journal", "-wal", "-shm", ""):  # the file last: a new one must not meet the old one's journal
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{ending}", f"{copy}{ending}")
        found = " ".join(str(error).split())
        warnings.warn(f"{path} is damaged ({found}); it was kept as {copy}, and a new one is begun", stacklevel=6)
    finally:
        lock.close()


def _free_name(path):
    """A name beside `path` for its damaged copy that no file has yet."""
    stem = f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}"
    names = (path.with_name(f"{stem}{f'-{number}' if number else ''}.damaged") for number in itertools.count())
    return next(name for name in names if not name.exists())


@contextlib.contextmanager
def _explained(path):
    """Turn SQLite's and the system's errors into ones that name the file and say what to do."""
    hint = "set COMPRESSLAB_HOME to a folder you can write to, or give another path"
    try:
        yield
    except sqlite3.Error as error:
        kind = PermissionError if error.sqlite_errorcode & 0xFF in _UNWRITABLE else OSError
        raise kind(f"the journal {path} cannot be used: {error}; {hint}") from error
    except OSError as error:
        hint = "" if "COMPRESSLAB_HOME" in str(error) else f"; {hint}"
        raise type(error)(f"the journal {path} cannot be used: {error}{hint}") from error
