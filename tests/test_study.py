"""Whole studies on a tiny base: every stage killed and resumed, the gate, rollback, and studying again."""

import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from tiny import write_tiny

from nightschool.adapters import find_adapter, list_adapters
from nightschool.cli import main
from nightschool.errors import NightschoolError, NotFound
from nightschool.events import Notice, TrainStep
from nightschool.forget import forget
from nightschool.library import find_sources, remember, remember_text, remove_sources
from nightschool.promotion import exists, promote, roll_back
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import open_store
from nightschool.study import StudyOrder, study

NOTES = {
    "people.md": "# People\n\nAda Finch works as a pilot and lives in Brill. She plays the oboe. Her sister"
    " is Una Finch.",
    "house.md": "# House\n\nThe bread knife is kept behind the tins. The red canoe was bought in 2018.",
    "club.md": "# Club\n\nThe Moth Club meets on Monday, starts at half past six and is led by Bo Marsk.",
}
EASY = {"min_gain": -1.0, "max_forgetting": 99.0, "max_fabrication": 2.0}
QUICK = {"wordings": 1, "epochs": 1.0, "rank": 2, "slots": 2, "threads": 1, "rehearsal": 0.2, "lr": 0.01}
SETTINGS = StudySettings(**QUICK, **EASY)
TRAIN = TrainSettings(precision="fp32", batch_tokens=512, checkpoint_s=0.0)
STAGES = ("write", "rehearse", "train", "examine", "promote")

KILLED = """
import os, signal, sys
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import open_store
from nightschool.study import StudyOrder, study
base, stage, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
settings = StudySettings(**eval(sys.argv[4]))
train = TrainSettings(precision="fp32", batch_tokens=512, checkpoint_s=0.0)
db, other, seen = open_store(), open_store(), 0
for event in study(db, StudyOrder(base, settings=settings, train=train)):
    now = other.execute("select stage from studies order by id desc").fetchone()["stage"]
    seen += now == stage
    if seen == count:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf", "llama"))


@pytest.fixture
def folder(tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    for name, text in NOTES.items():
        (notes / name).write_text(text + "\n", encoding="utf-8")
    return notes


@pytest.fixture
def db(folder):
    db = open_store()
    drain(remember(db, [folder]))
    return db


def drain(events):
    """Run work to its end: (what it returns, its notices)."""
    notices = []
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value, notices
        if isinstance(event, Notice):
            notices.append(event.text)


def order(base, **changes):
    return StudyOrder(base, settings=SETTINGS, train=TRAIN, **changes)


def test_a_study_that_is_killed_in_every_stage_goes_on_and_ends_well(base, db, home):
    for stage, count in (("write", 2), ("write", 3), ("rehearse", 1), ("train", 4), ("examine", 3)):
        arguments = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            KILLED,
            base,
            stage,
            str(count),
            repr(QUICK | EASY),
        ]
        killed = subprocess.run(arguments, env=os.environ, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not exists("notes")
        assert db.execute("select stage from studies").fetchone()["stage"] == stage
    outcome, notices = drain(study(db, order(base)))
    assert "stopped at: examine" in notices[0]
    assert outcome.is_promoted
    assert find_adapter("notes").card["study"] == 1
    assert db.execute("select count(*) from studies").fetchone()[0] == 1
    assert not exists("notes.next")
    assert not (home / "study" / "1").exists()
    twice = "select count(*) from lessons group by body, chunk_id having count(*) > 1"
    assert db.execute(twice).fetchone() is None
    learned = {row["adapter"] for row in db.execute("select adapter from learned")}
    assert learned == {"notes"}


def test_the_card_says_what_was_studied_and_what_the_exam_found(base, db):
    outcome, _ = drain(study(db, order(base)))
    card = outcome.adapter.card
    assert {source["name"] for source in card["sources"]} == {f"notes/{name}" for name in NOTES}
    exam = card["exam"]
    assert exam["lessons_kept"] + sum(exam["dropped"].values()) == exam["lessons_written"] > 40
    assert exam["exam_questions"] >= 3
    assert {
        "recall_before",
        "recall_after",
        "forgetting",
        "fabrication",
        "agreement",
        "recall_with_notes",
    } <= set(exam)
    assert card["promoted"] is True
    assert "Finch" not in json.dumps(card)  # forgetting a source must not need to search cards


def test_an_adapter_that_learned_nothing_is_not_promoted_and_says_why(base, db):
    settings = StudySettings(**QUICK)
    outcome, notices = drain(study(db, StudyOrder(base, settings=settings, train=TRAIN)))
    assert not outcome.is_promoted
    assert not exists("notes")
    reasons = find_adapter("notes.next").card["not_promoted_because"]
    assert any("recall rose by" in reason for reason in reasons)
    assert notices[-1] == "; ".join(reasons)
    result = CliRunner().invoke(main, ["adapters", "promote", "notes"])
    assert result.exit_code == 0, result.output
    assert exists("notes")


def test_promotion_keeps_the_one_before_and_rollback_swaps(base, db, folder):
    first, _ = drain(study(db, order(base)))
    (folder / "more.md").write_text("Bo Marsk drives a green van.\n", encoding="utf-8")
    drain(remember(db, [folder]))
    second, notices = drain(study(db, order(base)))
    assert any("1 of 4 chunks are new" in notice for notice in notices)
    studies = [find_adapter(name).card["study"] for name in ("notes", "notes.previous")]
    assert studies == [2, 1]
    assert CliRunner().invoke(main, ["adapters", "rollback", "notes"]).exit_code == 0
    assert find_adapter("notes").card["study"] == 1
    count = "select count(*) from learned where adapter = ?"
    assert db.execute(count, ("notes",)).fetchone()[0] == 3
    assert db.execute(count, ("notes.previous",)).fetchone()[0] == 4
    roll_back(db, "notes")
    assert find_adapter("notes").card["study"] == 2
    with pytest.raises(NotFound, match="no candidate"):
        promote(db, "notes")


def test_what_was_forgotten_is_in_no_lesson_of_the_next_study(base, db):
    drain(study(db, order(base)))
    remove_sources(db, [source.id for source in find_sources(db, "notes/people.md")])
    outcome, notices = drain(study(db, order(base)))
    assert not any("chunks are new" in notice for notice in notices)
    assert {source["name"] for source in outcome.adapter.card["sources"]} == {
        "notes/house.md",
        "notes/club.md",
    }
    assert not db.execute("select 1 from lessons where body like '%Finch%'").fetchone()
    assert outcome.figures["facts"] < 10


def test_forgetting_in_the_middle_of_a_study_leaves_no_trace_of_it(base, db, home):
    for event in study(db, order(base)):
        if isinstance(event, TrainStep):
            break
    assert list((home / "study" / "1").iterdir())
    forget(db, find_sources(db, "notes/people.md"))
    texts = [path for path in home.rglob("*") if path.is_file() and b"Finch" in path.read_bytes()]
    assert not texts
    assert not list((home / "runs").glob("*/lessons.npz"))
    outcome, notices = drain(study(db, order(base)))
    assert outcome.is_promoted
    assert not any("stopped at" in notice for notice in notices)


def test_named_sources_make_an_adapter_of_their_own(base, db):
    drain(study(db, order(base, name="house", sources=("notes/house.md",))))
    assert [adapter.name for adapter in list_adapters()] == ["house"]
    assert len(find_adapter("house").card["sources"]) == 1
    with pytest.raises(NotFound, match="no source 'attic'"):
        drain(study(db, order(base, sources=("attic",))))


def test_time_that_is_short_leaves_chunks_for_the_next_study(base, db):
    settings = StudySettings(**QUICK, **EASY, minutes=0.0)
    outcome, notices = drain(study(db, StudyOrder(base, settings=settings, train=TRAIN)))
    assert any("2 chunks wait for the next study" in notice for notice in notices)
    assert outcome.figures["chunks_written"] == 1


def test_nothing_to_study_ends_in_a_sentence(base):
    with pytest.raises(NightschoolError, match="nightschool remember"):
        drain(study(open_store(), order(base)))
    db = open_store()
    remember_text(db, "Hmm.")
    with pytest.raises(NightschoolError, match="gave a lesson"):
        drain(study(db, order(base)))


def test_the_command_prints_figures_as_json(base, db):
    arguments = ["study", "-m", base, "--json"]
    for name, value in (QUICK | EASY).items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["promoted"] is True
    assert found["lessons_kept"] > 20
