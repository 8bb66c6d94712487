"""The journal: what goes in comes out bit for bit, whatever happens to the processes and the file."""

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import tempfile
import threading
import time
import typing
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import compresslab as cl
from compresslab.experiments.journal import Journal, Result, plain

pytestmark = pytest.mark.slow

RESULT = Result(
    technique="zero_pruning",
    setting={
        "sparsity": 0.1 + 0.2,
        "scope": "global",
        "rank": 3,
        "exact": True,
        "layers": None,
        "per": {"fc1": [1, 2.0]},
    },
    stage="retrained",
    accuracy=0.1 + 0.7,
    file_bytes=12345,
    parameters=1000,
    nonzeros=100,
    seconds=1e-17 + 1 / 3,
    seed=7,
    steps=20,
    model="lenet_300_100",
    data="mnist",
    versions={"torch": "2.11", "python": "3.11"},
    created="2026-01-01T00:00:00+00:00",
    model_fingerprint="ab",
    data_fingerprint="cd",
)

SPAWN = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # pytest's own are out of reach for other users
        yield Path(folder) / "journal.sqlite"


def result(seed=7, **changes):
    return replace(RESULT, seed=seed, **changes)


def start(function, *arguments):
    """Start a process that calls function(*arguments, pipe); return it and the end of the pipe to read from."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=function, args=(*arguments, sender))
    process.start()
    sender.close()
    return process, receiver


def read_to_the_end(pipe):
    received = []
    with contextlib.suppress(EOFError):
        while True:
            received.append(pipe.recv())
    return received


def write(path, first, count, pipe):
    """Record Results, and tell the seed of each that is recorded."""
    journal = cl.journal.open(path)
    for seed in range(first, first + count):
        journal.record(result(seed))
        pipe.send(seed)


def write_side_by_side(path, processes, count):
    writers = [start(write, path, 100 * number, count) for number in range(processes)]
    for number, (process, pipe) in enumerate(writers):
        assert read_to_the_end(pipe) == list(range(100 * number, 100 * number + count))
        process.join(120)
        assert process.exitcode == 0


def with_little_room(limit, function, pipe):
    """Call a function where writing fails in the middle of a file, as on a full disk; send its OSError in words."""
    import resource  # not on Windows

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        function()
    except OSError as error:
        pipe.send(f"refused: {error}")


def test_a_result_comes_back_equal_and_with_the_same_types(path):
    journal = cl.journal.open(path)
    assert journal.record(RESULT) == RESULT
    found = cl.journal.open(path).find(RESULT.key)
    assert found == RESULT and found.key == RESULT.key
    for one in fields(Result):
        assert type(getattr(found, one.name)) in (one.type, *typing.get_args(one.type))
    assert [type(value) for value in found.setting.values()] == [type(value) for value in RESULT.setting.values()]
    assert list(found.setting) == list(RESULT.setting)
    assert type(found.setting["per"]["fc1"][1]) is float


def test_the_first_result_under_a_key_stays(path):
    journal = cl.journal.open(path)
    journal.record(RESULT)
    assert journal.record(replace(RESULT, seconds=99.0, accuracy=0.0, model="other name")) == RESULT
    assert len(journal) == 1 and journal.results() == [RESULT]


def test_find_knows_nothing_of_other_keys(path):
    journal = cl.journal.open(path)
    assert journal.find(RESULT.key) is None
    journal.record(RESULT)
    assert journal.find("0" * 64) is None


@pytest.mark.parametrize(
    "change",
    [
        {"technique": "other"},
        {"setting": {"sparsity": 0.3}},
        {"stage": "one-shot"},
        {"seed": 8},
        {"steps": 21},
        {"precision": "bf16"},
        {"lr": 0.1},
        {"batch_size": 3},
        {"split": "test"},
        {"model_fingerprint": "ac"},
        {"data_fingerprint": "ce"},
        {"versions": {"torch": "2.12"}},
        {"versions": {"torch": "2.11", "technique": "edited"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_changes_with_whatever_the_numbers_depend_on(change):
    assert replace(RESULT, **change).key != RESULT.key


def test_the_key_does_not_change_with_what_was_measured_or_how_it_is_called():
    renamed = replace(RESULT, model="net", data="custom", versions={"torch": "2.11", "python": "3.13"})
    assert replace(renamed, accuracy=0.0, seconds=0.0, created="", file_bytes=1).key == RESULT.key


@pytest.mark.parametrize(("a", "b"), [(1, 1.0), (0.9, np.float64(0.9)), (3, np.int64(3)), ([1, 2], (1.0, 2.0))])
def test_equal_numbers_share_a_key(a, b):
    assert replace(RESULT, setting={"x": a}).key == replace(RESULT, setting={"x": b}).key


@pytest.mark.parametrize(("a", "b"), [(1, True), (0, False), (0, None), (1, "1"), (0.1 + 0.2, 0.3)])
def test_different_values_do_not_share_a_key(a, b):
    assert replace(RESULT, setting={"x": a}).key != replace(RESULT, setting={"x": b}).key


def test_the_order_of_a_setting_does_not_matter_to_its_key():
    turned = dict(reversed(RESULT.setting.items()))
    assert replace(RESULT, setting=turned).key == RESULT.key


def test_plain_refuses_what_json_cannot_keep():
    with pytest.raises(ValueError, match=r"criterion is <function.*a setting holds numbers"):
        plain("criterion", test_plain_refuses_what_json_cannot_keep)
    with pytest.raises(ValueError, match="layers is"):
        plain("layers", {1: 2})


def test_results_are_filtered_and_newest_last(path):
    journal = cl.journal.open(path)
    for seed, stage in [(3, "one-shot"), (1, "retrained"), (2, "retrained")]:
        journal.record(result(seed, stage=stage))
    assert [one.seed for one in journal.results()] == [3, 1, 2]
    assert [one.seed for one in journal.results(stage="retrained", technique="zero_pruning")] == [1, 2]
    assert journal.results(model="another") == []
    with pytest.raises(ValueError, match="filter is 'colour'; choose one of 'technique'"):
        journal.results(colour="red")
    with pytest.raises(ValueError, match="filter is"):
        journal.results(**{"1 = 1 OR stage": "x"})


@pytest.mark.parametrize("change", [{"accuracy": float("nan")}, {"seconds": float("inf")}, {"stage": "guessed"}])
def test_what_is_no_measurement_is_refused(path, change):
    journal = cl.journal.open(path)
    with pytest.raises(ValueError, match=str(next(iter(change)))):
        journal.record(result(**change))
    assert len(journal) == 0


def test_frame_takes_results_as_a_sweep_hands_them_over():
    pd.testing.assert_frame_equal(cl.journal.frame(iter([RESULT])), cl.journal.frame([RESULT]))


def test_frame_spreads_the_settings_and_keeps_names_apart(path):
    journal = cl.journal.open(path)
    assert len(journal.to_frame()) == 0 and "accuracy" in journal.to_frame()
    journal.record(result(1, setting={"sparsity": 0.5, "seed": 4}))
    journal.record(result(2, setting={"threshold": 0.25}))
    frame = journal.to_frame()
    assert frame["sparsity"].tolist()[0] == 0.5 and np.isnan(frame["sparsity"][1])
    assert frame["threshold"][1] == 0.25
    assert frame["seed"].tolist() == [1, 2] and frame["setting.seed"][0] == 4
    assert frame["versions"][0] == "torch 2.11; python 3.11"
    columns = "technique model data stage steps file_bytes parameters nonzeros seconds created precision key"
    assert set(columns.split()) <= set(frame)
    assert frame["key"].is_unique and len(journal.to_frame(seed=2)) == 1


def test_csv_round_trip(path, tmp_path):
    journal = cl.journal.open(path)
    journal.record(result(1, model='a "net", ümlaut\nand a line'))
    journal.record(result(2))
    written = journal.to_csv(tmp_path / "out.csv")
    read = pd.read_csv(written)
    pd.testing.assert_series_equal(read["accuracy"], journal.to_frame()["accuracy"], check_exact=True)
    pd.testing.assert_series_equal(read["sparsity"], journal.to_frame()["sparsity"], check_exact=True)
    assert (
        read["model"][0] == 'a "net", ümlaut\nand a line' and read["key"].tolist() == journal.to_frame()["key"].tolist()
    )


def test_a_csv_that_cannot_be_completed_leaves_the_old_one(path, tmp_path):
    target = tmp_path / "out.csv"
    target.write_text("old")
    for seed in range(60):
        cl.journal.open(path).record(result(seed))
    journal = cl.journal.open(path)
    process, pipe = start(with_little_room, 4000, lambda: journal.to_csv(target))
    process.join(120)
    assert pipe.recv().startswith(f"refused: {target} cannot be written")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["out.csv"]


def test_a_full_disk_while_recording_leaves_the_journal_whole(path):
    cl.journal.open(path).record(RESULT)
    journal = cl.journal.open(path)
    process, pipe = start(with_little_room, 30000, lambda: [journal.record(result(seed)) for seed in range(8, 200)])
    process.join(120)
    assert pipe.recv().startswith(f"refused: the journal {path} cannot be used")
    journal = cl.journal.open(path)
    assert journal.results()[0] == RESULT and len(journal) > 5
    assert journal.record(result(1000)) == result(1000)


def test_to_csv_names_a_folder_that_is_not_there(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing/out.csv cannot be written"):
        cl.journal.open(path).to_csv(tmp_path / "missing" / "out.csv")


def test_many_processes_write_at_once(path):
    write_side_by_side(path, 4, 15)
    journal = cl.journal.open(path)
    assert sorted(one.seed for one in journal.results()) == sorted(100 * n + i for n in range(4) for i in range(15))


def test_threads_share_a_journal(path):
    journal, errors = cl.journal.open(path), []

    def work(first):
        try:
            for seed in range(first, first + 10):
                assert journal.record(result(seed % 15)) == result(seed % 15)
                assert journal.find(result(seed % 15).key) == result(seed % 15)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 5, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and sorted(one.seed for one in journal.results()) == list(range(15))


def test_killed_while_writing_loses_nothing_that_was_recorded(path):
    process, pipe = start(write, path, 0, 100_000)
    recorded = [pipe.recv() for _ in range(6)]
    time.sleep(0.05)
    process.kill()
    process.join()
    recorded += read_to_the_end(pipe)
    seeds = [one.seed for one in cl.journal.open(path).results()]
    assert seeds[: len(recorded)] == recorded and len(seeds) - len(recorded) in (0, 1)
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def damage_header(path):
    path.write_bytes(b"this is not a database" * 100)


def damage_by_truncation(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_short(path):
    path.write_bytes(path.read_bytes()[:50])


def damage_a_page(path):
    content = bytearray(path.read_bytes())
    content[4096:8192] = os.urandom(4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_header, damage_by_truncation, damage_short, damage_a_page])
def test_a_damaged_file_is_kept_aside_and_a_new_one_begun(path, damage):
    journal = cl.journal.open(path)
    for seed in range(20):
        journal.record(result(seed))
    damage(path)
    before = path.read_bytes()
    with pytest.warns(
        UserWarning, match=r"journal.sqlite is damaged \(.*\); it was kept as .*\.damaged, and a new one"
    ):
        journal = cl.journal.open(path)
    assert len(journal) == 0 and journal.record(RESULT) == RESULT
    copies = list(path.parent.glob("*.damaged"))
    assert [copy.read_bytes() for copy in copies] == [before]
    assert cl.journal.open(path).results() == [RESULT]


def test_damage_that_comes_while_it_is_open(path):
    journal = cl.journal.open(path)
    for seed in range(20):
        journal.record(result(seed))
    damage_header(path)
    with pytest.warns(UserWarning, match="damaged"):
        assert journal.record(RESULT) == RESULT
    damage_header(path)
    with pytest.warns(UserWarning, match="damaged"):
        assert journal.results() == []
    assert len(list(path.parent.glob("*.damaged"))) == 2


def test_many_that_find_the_damage_at_once_set_it_aside_once(path):
    cl.journal.open(path).record(RESULT)
    damage_header(path)
    write_side_by_side(path, 3, 5)
    assert len(list(path.parent.glob("*.damaged"))) == 1
    assert len(cl.journal.open(path)) == 15


def test_an_empty_file_and_a_deleted_one_are_begun_anew(path):
    path.touch()
    journal = cl.journal.open(path)
    journal.record(RESULT)
    path.unlink()
    assert journal.results() == [] and journal.record(RESULT) == RESULT


def test_a_file_of_a_newer_version_is_left_alone(path):
    cl.journal.open(path).record(RESULT)
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA user_version = 99")
        file.commit()
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"written by a newer compresslab \(schema 99, this one knows \d+\).*COMPRESSLAB_HOME"
    ):
        cl.journal.open(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_left_alone(path):
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE bookmarks (url)")
        file.commit()
    with pytest.raises(ValueError, match="not a journal"):
        cl.journal.open(path)


def test_a_path_that_cannot_be_written_names_itself_and_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/journal.sqlite cannot be used.*COMPRESSLAB_HOME"):
        cl.journal.open(tmp_path / "file" / "journal.sqlite")
    with pytest.raises(OSError, match="COMPRESSLAB_HOME"):
        cl.journal.open(tmp_path)


@contextlib.contextmanager
def as_nobody():
    """Without root's rights, which ignore the modes of files."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes of files work otherwise here")
def test_a_read_only_folder_and_file(path):
    cl.journal.open(path).record(RESULT)
    path.parent.chmod(0o555)
    path.chmod(0o444)
    with as_nobody():
        if not os.access(path, os.R_OK, effective_ids=True):
            pytest.skip("the temporary folder is out of reach for another user")
        with pytest.raises(PermissionError, match=r"journal.sqlite cannot be used.*COMPRESSLAB_HOME"):
            cl.journal.open(path)
    path.parent.chmod(0o777)
    with (
        as_nobody(),
        pytest.raises(PermissionError, match=r"journal.sqlite cannot be used: the file is read-only; set"),
    ):
        cl.journal.open(path)
    path.chmod(0o644)
    assert cl.journal.open(path).results() == [RESULT]


def test_the_default_place_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_HOME", str(tmp_path / "a" / "b"))
    journal = cl.journal.open()
    assert journal.path == tmp_path / "a" / "b" / "journal.sqlite"
    journal.record(RESULT)
    assert len(cl.journal.open()) == 1 and repr(journal).startswith("Journal(")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESSLAB_HOME", str(tmp_path / "file" / "x"))
    with pytest.raises(OSError, match="COMPRESSLAB_HOME"):
        cl.journal.open()


def test_a_journal_may_be_given_as_a_string_and_is_one_file(path):
    journal = Journal(str(path))
    journal.record(RESULT)
    assert os.listdir(path.parent) == ["journal.sqlite"]


def test_models_are_kept_by_key_and_the_oldest_make_room(path, monkeypatch):
    monkeypatch.setattr("compresslab.experiments.journal.ROOM", 100)
    journal = cl.journal.open(path)
    journal.keep_model("a", b"x" * 40)
    journal.keep_model("b", b"y" * 40)
    assert journal.find_model("a") == b"x" * 40 and journal.find_model("c") is None
    journal.keep_model("c", b"z" * 30)  # b was not used since a was found
    assert [journal.find_model(key) is None for key in "abc"] == [False, True, False]
    journal.keep_model("d", b"w" * 101)
    assert journal.find_model("d") is None and journal.find_model("a") is not None
    journal.keep_model("a", b"new")
    assert cl.journal.open(path).find_model("a") == b"new" and len(journal) == 0


def test_a_journal_of_an_older_version_is_kept_aside(path):
    cl.journal.open(path).record(RESULT)
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("DROP TABLE models")
        file.execute("PRAGMA user_version = 1")
    before = path.read_bytes()
    with pytest.warns(UserWarning, match=r"journal.sqlite was written by an older compresslab; it was kept as .*\.old"):
        journal = cl.journal.open(path)
    assert len(journal) == 0 and journal.record(RESULT) == RESULT
    assert [copy.read_bytes() for copy in path.parent.glob("*.old")] == [before]


@pytest.mark.parametrize("unnamed", [{"model_fingerprint": "unnamed-1"}, {"versions": {"technique": "unnamed-1"}}])
def test_what_has_no_name_is_not_kept(path, unnamed):
    journal, measured = cl.journal.open(path), replace(RESULT, **unnamed)
    assert journal.record(measured) == measured
    assert len(journal) == 0 and journal.find(measured.key) is None
