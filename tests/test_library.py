"""Remembering: unchanged files cost nothing, changed ones are replaced, deleted ones go; kills do no harm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nightschool import library
from nightschool.documents import read_document
from nightschool.errors import FileFormatError, NotFound
from nightschool.events import Notice, Progress, result_of
from nightschool.index import Index
from nightschool.library import (
    find_sources,
    list_sources,
    refresh,
    remember,
    remember_text,
    remove_sources,
)
from nightschool.store import open_store


@pytest.fixture
def db():
    return open_store()


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "boiler.md").write_text(
        "# Boiler\n\nIt is old.\n\n## Reset\n\nHold the knob for nine seconds.\n"
    )
    (folder / "deep" / "bees.txt").write_text("The bees live behind the shed.")
    return folder


def run(events):
    """The events and the value of a generator."""
    seen = []
    value = result_of(events, seen.append)
    return seen, value


def found(db, words):
    return [hit.source for hit in Index(db).search(words)]


def consistent(db):
    """Raises where the full-text index and the chunks differ, or the file is damaged."""
    db.execute("insert into chunks_fts (chunks_fts, rank) values ('integrity-check', 1)")
    assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
    assert not db.execute("pragma foreign_key_check").fetchall()


def test_a_folder_is_remembered_with_titles_headings_and_positions(db, notes):
    seen, result = run(remember(db, [notes]))
    assert result.added == ["notes/boiler.md", "notes/deep/bees.txt"]
    assert (result.chunks, result.unchanged, result.failed) == (3, 0, [])
    assert [event.done for event in seen if isinstance(event, Progress)] == [0, 1, 2]
    text = (notes / "boiler.md").read_text()
    rows = db.execute("select * from chunks where title = 'Boiler' order by position").fetchall()
    assert [(row["heading"], row["text"]) for row in rows] == [
        ("Boiler", text[rows[0]["start"] : rows[0]["stop"]]),
        ("Boiler › Reset", text[rows[1]["start"] : rows[1]["stop"]]),
    ]
    consistent(db)


def test_unchanged_files_are_not_even_opened(db, notes, monkeypatch):
    run(remember(db, [notes]))
    old = time.time() - 60
    for file in (notes / "boiler.md", notes / "deep" / "bees.txt"):
        os.utime(file, (old, old))
    _, again = run(remember(db, [notes]))  # new times: hashed once more, same bytes
    assert (again.unchanged, again.changed) == (2, [])
    monkeypatch.setattr(library, "_hash_file", lambda path: pytest.fail(f"{path} was opened"))
    _, third = run(remember(db, [notes]))
    assert (third.unchanged, third.chunks) == (2, 0)


def test_a_change_within_the_same_moment_is_seen(db, notes):
    run(remember(db, [notes]))
    file = notes / "boiler.md"
    state = file.stat()
    file.write_text(file.read_text().replace("nine", "five"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    _, result = run(remember(db, [notes]))
    assert result.changed == ["notes/boiler.md"]


def test_changed_files_replace_their_chunks_and_deleted_ones_disappear(db, notes):
    run(remember(db, [notes]))
    (notes / "boiler.md").write_text("# Boiler\n\nIt is new. Press the switch.\n")
    (notes / "deep" / "bees.txt").unlink()
    _, result = run(remember(db, [notes]))
    assert (result.changed, result.removed) == (["notes/boiler.md"], ["notes/deep/bees.txt"])
    assert found(db, "switch") == ["notes/boiler.md"]
    assert found(db, "knob") == found(db, "bees") == []
    consistent(db)


def test_a_file_that_cannot_be_read_is_named_and_the_rest_goes_on(db, notes):
    (notes / "a.pdf").write_bytes(b"%PDF-nothing")
    (notes / "c.md").write_text("")
    seen, result = run(remember(db, [notes]))
    assert [name for name, _ in result.failed] == ["notes/a.pdf", "notes/c.md"]
    assert len(result.added) == 2
    said = [event.text for event in seen if isinstance(event, Notice)]
    assert said[0].startswith(f"{notes / 'a.pdf'}: left out: it is no PDF")
    assert said[1].endswith("there is no text in it.")


def test_a_known_file_that_cannot_be_read_any_more_keeps_what_is_known(db, notes):
    run(remember(db, [notes]))
    (notes / "boiler.md").write_bytes(b"\0" * 100)
    _, result = run(remember(db, [notes]))
    assert result.failed == [("notes/boiler.md", "it is not text; the version known before was kept")]
    assert found(db, "knob") == ["notes/boiler.md"]
    stale = {source.label: source.stale for source in list_sources(db)}
    assert stale == {
        "notes/boiler.md": "the file has changed since it was read",
        "notes/deep/bees.txt": "",
    }


def test_a_path_that_is_not_there_is_refused_before_anything_is_read(db, notes, tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        run(remember(db, [notes, tmp_path / "nowhere"]))
    assert list_sources(db) == []


def test_looking_again_covers_everything_known_and_keeps_a_folder_that_is_away(db, notes, tmp_path):
    single = tmp_path / "single.md"
    single.write_text("A single page about herons.")
    run(remember(db, [notes, single]))
    (notes / "new.md").write_text("A new page about otters.")
    single.unlink()
    _, result = run(refresh(db))
    assert (result.added, result.removed) == (["notes/new.md"], ["single.md"])
    notes.rename(tmp_path / "moved")
    _, result = run(refresh(db))
    assert result.removed == []
    assert result.failed == [(str(notes), "it is not there; what is known of it was kept")]
    assert found(db, "otters") == ["notes/new.md"]


def test_two_folders_of_one_name_are_told_apart(db, notes, tmp_path):
    other = tmp_path / "other" / "notes"
    other.mkdir(parents=True)
    (other / "boiler.md").write_text("A kettle.")
    run(remember(db, [notes, other]))
    assert found(db, "kettle") == [str(other / "boiler.md")]


def test_notes_are_kept_once_and_can_be_found(db):
    note = remember_text(db, "The boathouse key is under the third pot.")
    assert remember_text(db, "The boathouse key is under the third pot.") == note
    assert (note.kind, note.chunks, note.title) == (
        "note", 1, "The boathouse key is under the third pot.",
    )  # fmt: skip
    assert found(db, "boathouse") == [note.label]
    with pytest.raises(FileFormatError):
        remember_text(db, " ")


def test_sources_are_found_by_label_path_and_folder(db, notes, monkeypatch):
    run(remember(db, [notes]))
    one = ["notes/boiler.md"]
    assert [source.label for source in find_sources(db, "notes/boiler.md")] == one
    assert [source.label for source in find_sources(db, str(notes / "boiler.md"))] == one
    monkeypatch.chdir(notes)
    assert [source.label for source in find_sources(db, "boiler.md")] == one
    assert len(find_sources(db, "notes/")) == 2
    assert len(find_sources(db, str(notes))) == 2
    with pytest.raises(NotFound, match="Nothing is known of 'note'"):
        find_sources(db, "note")


def test_removing_takes_lessons_and_vectors_along(db, notes):
    run(remember(db, [notes]))
    (source,) = find_sources(db, "notes/boiler.md")
    chunk = db.execute("select id from chunks where source_id = ?", (source.id,)).fetchone()["id"]
    db.execute("insert into vectors (model, chunk_id, vector) values ('m', ?, x'00')", (chunk,))
    db.execute("insert into learned (adapter, source_id, hash) values ('work', ?, 'old')", (source.id,))
    db.execute("insert into lessons (source_id, kind, body) values (?, 'qa', 'knob?')", (source.id,))
    (known,) = find_sources(db, "notes/boiler.md")
    assert (known.studied, known.stale) == (("work",), "work learned an earlier version")
    remove_sources(db, [source.id])
    for table in ("vectors", "learned", "lessons"):
        assert db.execute(f"select count(*) from {table}").fetchone()[0] == 0
    assert [source.label for source in list_sources(db)] == ["notes/deep/bees.txt"]
    consistent(db)


REMEMBER = """
import sys
from pathlib import Path
from nightschool.library import remember
from nightschool.store import open_store
for event in remember(open_store(), [Path(sys.argv[1])]):
    print(event, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 3, 40])
def test_a_kill_in_the_middle_loses_nothing_and_leaves_the_index_whole(tmp_path, lines):
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(120):
        (folder / f"{number:03}.md").write_text(f"# Page {number}\n\n" + f"Word{number} stands here. " * 200)
    script = [sys.executable, "-c", REMEMBER, str(folder)]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for _ in range(lines):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    db = open_store()
    consistent(db)
    known = list_sources(db)
    assert lines - 2 <= len(known) < 120
    for source in known:  # each whole
        chunks = db.execute("select text from chunks where source_id = ? order by position", (source.id,))
        assert "".join(row["text"] for row in chunks) == read_document(Path(source.name)).text
    _, result = run(remember(db, [folder]))
    assert len(result.added) == 120 - len(known)
    assert set(found(db, "word119")) == {"notes/119.md"}
    consistent(db)


def test_a_reader_searches_undisturbed_while_another_process_writes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:03}.md").write_text("The heron stands in the water. " * 200)
    db = open_store()
    note = remember_text(db, "The otter sleeps.")
    process = subprocess.Popen(
        [sys.executable, "-c", REMEMBER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    sizes = []
    while process.poll() is None:
        assert found(db, "otter") == [note.label]
        sizes.append(Index(db).size)
    process.communicate()
    assert sizes == sorted(sizes)
    of_one = db.execute("select count(*) from chunks where source_id = 2").fetchone()[0]
    assert Index(db).size == 1 + 60 * of_one
