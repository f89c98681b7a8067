"""The database: migrations happen whole or not at all; bad files are refused; what is deleted is gone."""

import sqlite3

import pytest

from nightschool import store
from nightschool.errors import StoreError
from nightschool.library import remember_text, remove_sources
from nightschool.store import (
    database_path,
    get_note,
    migrate,
    open_store,
    purge,
    set_note,
    transaction,
)


def schema(db):
    return [tuple(row) for row in db.execute("select name, sql from sqlite_master order by name")]


def test_the_database_lies_in_the_home_and_is_the_persons_own(home):
    open_store()
    assert database_path() == home / "nightschool.db"
    assert database_path().stat().st_mode & 0o077 == 0


def test_migrating_twice_changes_nothing():
    db = open_store()
    before = schema(db)
    migrate(db)
    assert schema(db) == before
    assert schema(open_store()) == before


def test_a_migration_that_fails_leaves_the_database_as_it_was(monkeypatch):
    db = open_store()
    before = schema(db)
    bad = [*store.MIGRATIONS, lambda db: db.execute("create table t (x)"), lambda db: 1 / 0]
    monkeypatch.setattr(store, "MIGRATIONS", bad)
    with pytest.raises(ZeroDivisionError):
        migrate(db)
    assert schema(db) == before


def test_every_version_on_the_way_can_be_brought_up_to_date(tmp_path, monkeypatch):
    whole = schema(open_store())
    steps = store.MIGRATIONS
    for count in range(1, len(steps)):
        path = tmp_path / f"{count}.db"
        with monkeypatch.context() as older:
            older.setattr(store, "MIGRATIONS", steps[:count])
            open_store(path).close()
        assert schema(open_store(path)) == whole


def test_a_database_of_a_later_version_is_refused():
    open_store().execute("pragma user_version = 999")
    with pytest.raises(StoreError, match=r"version 999.*upgrade nightschool"):
        open_store()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "a.db").write_bytes(b"This is a letter to my aunt." * 100)
    with pytest.raises(StoreError, match="move it away"):
        open_store(tmp_path / "a.db")


def test_a_transaction_that_breaks_leaves_nothing():
    db = open_store()
    with pytest.raises(RuntimeError), transaction(db):
        set_note(db, "a", "1")
        raise RuntimeError
    assert get_note(db, "a") is None
    set_note(db, "a", "2")
    assert get_note(db, "a") == "2"
    set_note(db, "a", None)
    assert get_note(db, "a") is None


def test_a_second_writer_is_told_to_wait(monkeypatch):
    monkeypatch.setattr(store, "WAIT_S", 0.1)
    first, second = open_store(), open_store()
    with transaction(first), pytest.raises(StoreError, match="Another command"), transaction(second):
        pass


def test_a_full_disk_is_said_in_a_sentence_and_leaves_the_database_whole():
    db = open_store()
    set_note(db, "a", "1")
    pages = db.execute("pragma page_count").fetchone()[0]
    db.execute(f"pragma max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="cannot be written .*full.*make room"), transaction(db):
        for number in range(100):
            set_note(db, f"key {number}", "x" * 10_000)
    assert get_note(db, "key 0") is None
    assert get_note(db, "a") == "1"


def test_a_mistake_in_a_statement_stays_what_it_is():
    db = open_store()
    with pytest.raises(sqlite3.OperationalError, match="no such table"), transaction(db):
        db.execute("select * from nowhere")


def test_a_store_can_be_opened_while_another_command_writes(monkeypatch):
    monkeypatch.setattr(store, "WAIT_S", 0.1)
    db = open_store()
    with transaction(db):
        set_note(db, "a", "1")
        assert get_note(open_store(), "a") is None


def test_a_reader_sees_the_old_state_until_the_writer_is_done():
    writer, reader = open_store(), open_store()
    with transaction(writer):
        set_note(writer, "a", "1")
        assert get_note(reader, "a") is None
    assert get_note(reader, "a") == "1"


def test_purging_is_done_later_when_somebody_reads(home, monkeypatch):
    monkeypatch.setattr(store, "WAIT_S", 0.1)
    db, reader = open_store(), open_store()
    note = remember_text(db, "The zwollenkamp is under the stairs.")
    reader.execute("begin")
    reader.execute("select * from chunks").fetchall()
    remove_sources(db, [note.id])
    assert not purge(db)
    reader.execute("commit")
    assert purge(db)
    left = b"".join(file.read_bytes() for file in home.iterdir()).lower()
    assert b"zwollenkamp" not in left
    assert purge(db)  # nothing is due: nothing happens


def test_foreign_keys_hold():
    with pytest.raises(sqlite3.IntegrityError):
        open_store().execute(
            "insert into chunks (source_id, position, start, stop, title, heading, text)"
            " values (99, 0, 0, 1, '', '', 'x')"
        )
