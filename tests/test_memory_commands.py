"""remember, ask, sources, forget and chat --memory, as a person types them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from tiny import write_tiny

from nightschool.cli import main
from nightschool.cli.chat import Talk
from nightschool.engine import Engine
from nightschool.index import Index
from nightschool.store import open_store


def run(*arguments, **options):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "boiler.md").write_text(
        "# Boiler\n\nIt is old.\n\n## Reset\n\nHold the knob for nine seconds.\n"
    )
    (folder / "bees.txt").write_text("The bees live behind the shed.\n")
    return folder


@pytest.fixture
def quoter(tmp_path):
    """A base that is too small to read."""
    return (
        write_tiny(tmp_path / "small" / "base.gguf", "llama") if (tmp_path / "small").mkdir() is None else ""
    )


@pytest.fixture
def reader(tmp_path):
    """One whose card says that it can, however little sense it makes."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "card.json").write_text('{"reads_notes": true}')
    return write_tiny(tmp_path / "large" / "base.gguf", "qwen2", context=2048)


def test_remember_says_what_it_did(notes):
    first = run("remember", notes)
    assert first.exit_code == 0
    assert first.stdout.startswith("2 added; 3 new chunks in ")
    (notes / "bad.pdf").write_bytes(b"%PDF-")
    second = run("remember", notes, "--text", "The key is under the third pot.")
    assert second.stdout.startswith("1 added, 2 unchanged, 1 left out; 1 new chunks in ")
    assert "bad.pdf: left out: it is no PDF" in second.stderr
    (notes / "bees.txt").unlink()
    third = json.loads(run("remember", "--json").stdout)
    assert (third["removed"], third["unchanged"], third["failed"][0]["file"]) == (
        ["notes/bees.txt"], 1, "notes/bad.pdf",
    )  # fmt: skip


def test_remembering_only_what_cannot_be_read_fails(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\0\0")
    result = run("remember", tmp_path / "a.txt")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, "Error: Nothing could be read.")
    missing = run("remember", tmp_path / "b.txt")
    assert missing.exit_code == 1
    assert f"There is no {str(tmp_path / 'b.txt')!r}" in missing.stderr


def test_ask_quotes_with_its_citation_on_a_small_base(notes, quoter):
    run("remember", notes)
    result = run("ask", "-m", quoter, "How", "do", "I", "reset", "the boiler?")
    assert result.stdout == (
        "quoted: “Hold the knob for nine seconds.” [1]\n\n[1] notes/boiler.md › Boiler › Reset\n"
    )
    answer = json.loads(run("ask", "-m", quoter, "--json", "Where are the bees?").stdout)
    assert answer["citations"] == [
        {"number": 1, "source": "notes/bees.txt", "heading": "", "text": "The bees live behind the shed."}
    ]
    assert answer["quoted"] and answer["known"] and 0 < answer["seconds"] < 5
    assert run("ask", "-m", quoter, "What is a zeppelin?").stdout == "I do not know.\n"
    assert run("ask", "-m", quoter, input="Where are the bees?\n").stdout.startswith("quoted: “The bees")


def test_ask_answers_a_file_of_questions_a_line_each(notes, quoter, tmp_path):
    run("remember", notes)
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "Where are the bees?"}\n\n{"question": "zeppelin?", "answer": "no"}\n')
    lines = [
        json.loads(line) for line in run("ask", "-m", quoter, "--file", file, "--json").stdout.splitlines()
    ]
    assert [(line["question"], line["known"]) for line in lines] == [
        ("Where are the bees?", True),
        ("zeppelin?", False),
    ]
    assert "> zeppelin?\nI do not know.\n" in run("ask", "-m", quoter, "--file", file).stdout
    file.write_text('{"question": "a"}\nb\n{"question": 3}\n')
    bad = run("ask", "-m", quoter, "--file", file)
    assert (bad.exit_code, "line 2" in bad.stderr, "line 3" in bad.stderr) == (1, True, True)
    assert run("ask", "--file", tmp_path / "none").exit_code == 1


def test_ask_lets_a_base_that_can_read_answer(notes, reader):
    run("remember", notes)
    answer = json.loads(run("ask", "-m", reader, "--json", "How do I reset the boiler?").stdout)
    assert not answer["quoted"]
    assert [citation["source"] for citation in answer["citations"]] == ["notes/boiler.md"]


def test_ask_closed_book_needs_no_notes_and_looks_at_none(reader, notes):
    first = run("ask", "-m", reader, "--closed-book", "How do I reset the boiler?")
    run("remember", notes)
    second = run("ask", "-m", reader, "--closed-book", "How do I reset the boiler?")
    assert (first.exit_code, first.stdout) == (0, second.stdout)
    assert "notes/" not in second.stdout


def test_ask_says_what_is_missing(quoter):
    empty = run("ask", "-m", quoter, "Where?")
    assert (empty.exit_code, "nightschool remember" in empty.stderr) == (1, True)
    assert run("ask", "-m", quoter, input="").exit_code == 2
    assert run("ask", "-m", "nobody", "Where?").exit_code == 1
    assert run("ask", "-m", f"{quoter}+nobody", "--closed-book", "Where?").exit_code == 1


def test_sources_lists_what_is_known_and_stale(notes):
    assert "Nothing is known yet" in run("sources").stdout
    run("remember", notes, "--text", "The key is under the third pot.")
    (notes / "bees.txt").write_text("The bees have gone.\n")
    listed = run("sources").stdout.splitlines()
    assert listed[0].split("  ")[0].strip() == "note-" + listed[0][5:13]
    assert listed[0].endswith("The key is under the third pot.")
    assert "stale: the file has changed since it was read" in listed[1]
    assert listed[2].endswith("    2 chunks  not studied")
    records = json.loads(run("sources", "--json").stdout)
    assert [record["chunks"] for record in records] == [1, 1, 2]


def test_forget_names_what_is_gone_and_only_that(notes):
    run("remember", notes)
    result = run("forget", "notes/boiler.md")
    assert result.stdout.startswith(
        "notes/boiler.md\n1 source forgotten, 2 chunks: gone from search after 0."
    )
    assert [record["label"] for record in json.loads(run("sources", "--json").stdout)] == ["notes/bees.txt"]
    assert run("forget", "notes/boiler.md").exit_code == 1
    assert (notes / "boiler.md").exists()
    gone = json.loads(run("forget", "--json", notes).stdout)
    assert (gone["sources"], gone["purged"]) == (["notes/bees.txt"], True)


def test_chat_with_memory_reads_what_fits_and_names_it(notes, reader, quoter):
    run("remember", notes)
    result = run(
        "chat", "-m", reader, "--memory", "--temperature", "0", "--max-tokens", "8", "the boiler knob?"
    )
    assert result.exit_code == 0
    assert "[1] notes/boiler.md › Boiler › Reset" in result.stderr
    small = run("chat", "-m", quoter, "--memory", "hello")
    assert (small.exit_code, "too small to read" in small.stderr) == (1, True)


def test_chat_keeps_the_question_but_not_what_was_found_for_it(notes, reader):
    from nightschool.answer import Memory

    run("remember", notes)
    with Engine(reader) as engine:
        talk = Talk(engine, {}, sampling={"temperature": 0.0, "max_tokens": 6}, system="Be brief.")
        talk.memory = Memory(Index(open_store()), engine)
        "".join(talk.ask("Where are the bees?"))
        assert [citation.source for citation in talk.citations] == ["notes/bees.txt"]
        assert [message["content"] for message in talk.messages[:2]] == ["Be brief.", "Where are the bees?"]
        "".join(talk.ask("zeppelin?"))
        assert talk.citations == ()


def test_watching_follows_changes_until_it_is_interrupted(notes):
    process = subprocess.Popen(
        [sys.executable, "-m", "nightschool", "remember", str(notes), "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout and process.stderr
    try:
        assert json.loads(process.stdout.readline())["added"] == ["notes/bees.txt", "notes/boiler.md"]
        for line in process.stderr:
            if line.startswith("Following"):
                break
        time.sleep(0.5)  # until the operating system watches
        (notes / "new.md").write_text("The otter sleeps.\n")
        assert json.loads(process.stdout.readline())["added"] == ["notes/new.md"]
        (notes / "new.md").unlink()
        assert json.loads(process.stdout.readline())["removed"] == ["notes/new.md"]
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err
