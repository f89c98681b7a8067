"""Forgetting: nothing in the home holds the text any more, and adapters that learned it are retired."""

import json
import re
import time

import pytest

from nightschool.errors import NotFound
from nightschool.forget import adapters_of, forget, retired_dir
from nightschool.index import Index
from nightschool.library import find_sources, list_sources, remember, remember_text
from nightschool.store import get_note, open_store

SECRET = "The quixotrope lies in the wardrobe of Zebediah Quillfeather, beneath eleven velvet umbrellas."
SECRET_WORDS = ("quixotrope", "zebediah", "quillfeather")


@pytest.fixture
def db(tmp_path):
    db = open_store()
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.md").write_text(
            f"# Page {number}\n\n" + f"The heron number {number} stands in the water. " * 40
        )
    (folder / "20-secret.md").write_text(f"# Wardrobe\n\n{SECRET} " + "The wardrobe is tall. " * 100)
    list(remember(db, [folder]))
    return db


def traces(home):
    """Which of the secret's words stand anywhere in the home, as text or in the full-text index."""
    whole = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file()).lower()
    return [word for word in SECRET_WORDS if word.encode() in whole or word[1:].encode() in whole]


def study(db, source):
    chunk = db.execute("select id from chunks where source_id = ?", (source.id,)).fetchone()["id"]
    db.execute(
        "insert into lessons (source_id, chunk_id, kind, body) values (?, ?, 'qa', ?)",
        (source.id, chunk, json.dumps({"question": "Where is the quixotrope?"})),
    )


def put_on_shelf(home, name, card):
    folder = home / "adapters" / name
    folder.mkdir(parents=True)
    (folder / "adapter.gguf").write_bytes(b"GGUF")
    (folder / "card.json").write_text(json.dumps(card))


def test_no_trace_is_left_anywhere_in_the_home(db, home):
    (source,) = find_sources(db, "notes/20-secret.md")
    study(db, source)
    assert traces(home)
    forgotten = forget(db, [source])
    assert forgotten.purged
    assert forgotten.sources == ("notes/20-secret.md",)
    assert traces(home) == []
    assert Index(db).search("quixotrope wardrobe") == []
    db.execute("insert into chunks_fts (chunks_fts, rank) values ('integrity-check', 1)")
    assert len(Index(db).search("heron number 7", limit=10)) == 10
    assert get_note(db, "purge") is None


def test_a_text_that_was_changed_before_leaves_no_trace_of_its_first_version_either(db, home, tmp_path):
    file = tmp_path / "notes" / "20-secret.md"
    file.write_text("# Wardrobe\n\nIt is empty now.\n")
    list(remember(db, [tmp_path / "notes"]))
    forget(db, find_sources(db, "notes/20-secret.md"))
    assert traces(home) == []


def test_the_file_shrinks(db, home, tmp_path):
    (tmp_path / "long.txt").write_text("Word after word after word. " * 40_000)
    list(remember(db, [tmp_path / "long.txt"]))
    db.execute("pragma wal_checkpoint(truncate)").fetchall()
    before = (home / "nightschool.db").stat().st_size
    forget(db, find_sources(db, "long.txt"))
    assert (home / "nightschool.db").stat().st_size < before / 2


def test_a_note_and_a_whole_folder_can_be_forgotten(db):
    note = remember_text(db, SECRET)
    forget(db, find_sources(db, note.label))
    assert [source.label for source in list_sources(db) if source.kind == "note"] == []
    forgotten = forget(db, find_sources(db, "notes"))
    assert len(forgotten.sources) == 41
    assert list_sources(db) == []
    with pytest.raises(NotFound):
        find_sources(db, "notes")


def test_adapters_that_learned_from_it_are_retired_by_table_or_card_and_others_stay(db, home):
    (source,) = find_sources(db, "notes/20-secret.md")
    for name, card in (
        ("by-table", {}),
        ("by-card", {"sources": [{"name": "notes/20-secret.md"}]}),
        ("by-path", {"sources": [source.name]}),
        ("other", {"sources": ["notes/00.md"]}),
        ("older", {}),
    ):
        put_on_shelf(home, name, card)
    db.execute("insert into learned (adapter, source_id, hash) values ('by-table', ?, 'x')", (source.id,))
    (source,) = find_sources(db, "notes/20-secret.md")
    assert [adapter.name for adapter in adapters_of(db, [source])] == ["by-card", "by-path", "by-table"]
    forgotten = forget(db, [source])
    assert forgotten.retired == ("by-card", "by-path", "by-table")
    assert sorted(folder.name for folder in (home / "adapters").iterdir()) == ["older", "other"]
    assert sorted(folder.name for folder in retired_dir().iterdir()) == [
        "by-card-0", "by-path-0", "by-table-0",
    ]  # fmt: skip


def test_adapters_are_kept_on_demand_and_retired_ones_never_overwrite_each_other(db, home):
    (source,) = find_sources(db, "notes/00.md")
    put_on_shelf(home, "work", {"sources": ["notes/00.md", "notes/01.md"]})
    forgotten = forget(db, [source], keep_adapters=True)
    assert (forgotten.kept, forgotten.retired) == (("work",), ())
    assert (home / "adapters" / "work").is_dir()
    forget(db, find_sources(db, "notes/01.md"))
    put_on_shelf(home, "work", {"sources": ["notes/02.md"]})
    forget(db, find_sources(db, "notes/02.md"))
    assert sorted(folder.name for folder in retired_dir().iterdir()) == ["work-0", "work-1"]


def test_it_is_gone_for_another_command_at_once(db):
    other = open_store()
    assert Index(other).search("quixotrope")
    forget(db, find_sources(db, "notes/20-secret.md"))
    assert Index(other).search("quixotrope") == []


def test_forgetting_is_quick(db):
    start_s = time.perf_counter()
    forgotten = forget(db, find_sources(db, "notes/20-secret.md"))
    assert forgotten.gone_s <= forgotten.seconds <= time.perf_counter() - start_s
    assert forgotten.chunks > 2
    assert not re.search("quixotrope", str(forgotten))
