"""Whole studies on a tiny base: every stage killed and resumed, the gate, rollback, and studying again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import closing

import pytest
from click.testing import CliRunner
from tiny import write_tiny

from nightschool.adapters import find_adapter, list_adapters
from nightschool.cli import main
from nightschool.errors import NightschoolError, NotFound
from nightschool.events import Notice, Progress, TrainStep, result_of
from nightschool.forget import all_due, forget
from nightschool.hub import base_hash, find_base
from nightschool.lessonbook import Lessonbook, files_of
from nightschool.library import find_sources, remember, remember_text, remove_sources
from nightschool.paths import runs_dir
from nightschool.promotion import exists, promote, roll_back
from nightschool.rebuild import rebuild
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import open_store, set_note
from nightschool.study import STAGES, Night, StudyOrder, plan, study

NOTES = {
    "people.md": "# People\n\nAda Finch works as a pilot and lives in Brill. She plays the oboe. Her sister"
    " is Una Finch.",
    "house.md": "# House\n\nThe bread knife is kept behind the tins. The red canoe was bought in 2018.",
    "club.md": "# Club\n\nThe Moth Club meets on Monday, starts at half past six and is led by Bo Marsk.",
}
EASY = {"min_gain": -1.0, "max_forgetting": 99.0, "max_fabrication": 2.0}
QUICK = {
    "by_words": 8,
    "wordings": 1,
    "epochs": 1.0,
    "rank": 2,
    "slots": 2,
    "threads": 1,
    "rehearsal": 0.2,
    "lr": 0.01,
    "steps": 0,
}
SETTINGS = StudySettings(**QUICK, **EASY)
TRAIN = TrainSettings(precision="fp32", batch_tokens=512, checkpoint_s=0.0)

# Goes on with the study in a child for each place, which dies at its so manieth event in that stage;
# says what it died of, which stage it had come to and whether there is an adapter.
KILLED = """
import json, os, signal, sys
from nightschool.promotion import exists
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import open_store
from nightschool.study import StudyOrder, study
base, places, settings = sys.argv[1], json.loads(sys.argv[2]), StudySettings(**json.loads(sys.argv[3]))
train = TrainSettings(precision="fp32", batch_tokens=512, checkpoint_s=0.0)
STAGE = "select stage from studies order by id desc"
for stage, count in places:
    child = os.fork()  # nothing has computed here: there are no threads to lose
    if child == 0:
        db, other, seen = open_store(), open_store(), 0
        for event in study(db, StudyOrder(base, settings=settings, train=train)):
            seen += other.execute(STAGE).fetchone()["stage"] == stage
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    db = open_store()
    print(json.dumps([status, db.execute(STAGE).fetchone()["stage"], exists("notes")]), flush=True)
    db.close()
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf", "llama"))


def written(where):
    """A folder of notes."""
    notes = where / "notes"
    notes.mkdir()
    for name, text in NOTES.items():
        (notes / name).write_text(text + "\n", encoding="utf-8")
    return notes


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


@pytest.fixture
def db(folder):
    db = open_store()
    drain(remember(db, [folder]))
    return db


@pytest.fixture(scope="module")
def studied_home(base, tmp_path_factory):
    """A home in which the notes were studied, where the notes lie, and what came of it."""
    home, notes = tmp_path_factory.mktemp("studied"), written(tmp_path_factory.mktemp("learned"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTSCHOOL_HOME", str(home))
        with closing(open_store()) as db:
            drain(remember(db, [notes]))
            outcome, _ = drain(study(db, order(base)))
    assert outcome.is_promoted
    return home, notes, outcome


@pytest.fixture
def studied(studied_home, home):
    """As studied_home, copied for one test, which may add more.md: its store, the notes, what came of it."""
    made, notes, outcome = studied_home
    shutil.copytree(made, home, dirs_exist_ok=True)
    yield open_store(), notes, outcome
    (notes / "more.md").unlink(missing_ok=True)


def drain(events):
    """Run work to its end: (what it returns, its notices)."""
    seen = []
    value = result_of(events, seen.append)
    return value, [event.text for event in seen if isinstance(event, Notice)]


def order(base, **changes):
    return StudyOrder(base, settings=SETTINGS, train=TRAIN, **changes)


def test_a_study_that_is_killed_in_every_stage_goes_on_and_ends_well(base, db, home):
    places = [("write", 2), ("write", 3), ("divide", 2), ("rehearse", 2), ("distil", 5), ("train", 5)]
    places.append(("examine", 4))
    assert killed_in(base, places) == [[signal.SIGKILL, stage, False] for stage, _ in places]
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


def killed_in(base, places):
    """What KILLED says of each place."""
    arguments = [sys.executable, "-W", "ignore", "-c", KILLED, base, json.dumps(places)]
    done = subprocess.run(
        [*arguments, json.dumps(QUICK | EASY)], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_dividing_the_lessons_is_told_before_it_is_done(base, db):
    told = []
    for event in study(db, order(base)):
        stage = db.execute("select stage, figures from studies").fetchone()
        if stage["stage"] == "divide":
            told.append((event, "lessons_kept" in json.loads(stage["figures"])))
        if stage["stage"] == "train":
            break
    assert isinstance(told[0][0], Progress)
    assert (told[0][0].task, told[0][0].done, told[0][1]) == ("dividing the lessons", 0, False)
    assert told[0][0].total > 40
    assert told[-1][1]


def test_a_kill_at_any_moment_of_the_promotion_is_mended(base, db, home, tmp_path):
    book = Lessonbook(db, base_hash(find_base(base).path))
    night = Night(db, book, order(base), book.begin("notes", base, plan(book, order(base))))
    while night.stage != "promote":
        drain(getattr(night, night.stage)())
        night.stage = STAGES[STAGES.index(night.stage) + 1]
    db.close()
    examined, killed, moments = tmp_path / "examined", True, 0
    shutil.copytree(home, examined)
    while killed:
        moments += 1
        shutil.rmtree(home)
        shutil.copytree(examined, home)
        killed = killed_at(moments, base)
        left = open_store()
        if left.execute("select 1 from studies where stage != 'done'").fetchone():
            outcome, _ = drain(study(left, order(base)))
            assert outcome.is_promoted
        assert [adapter.name for adapter in list_adapters()] == ["notes"]
        assert find_adapter("notes").card["promoted"] is True
        assert {row["adapter"] for row in left.execute("select adapter from learned")} == {"notes"}
        assert not (home / "study" / "1").exists()
        left.close()
    assert moments > 6


def killed_at(moment, base):
    """Go on with the study in a child that dies at its so manieth change of files or rows; whether it did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        seen = 0

        def count(event, *_):
            nonlocal seen
            changes = event in ("os.rename", "os.remove", "os.rmdir") or event.lower() == "commit"
            seen += changes
            if changes and seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            db = open_store()
            sys.addaudithook(count)
            db.set_trace_callback(count)
            drain(study(db, order(base)))
        except BaseException:  # nothing may get out of the child into the rest of the tests
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_the_card_says_what_was_studied_and_what_the_exam_found(studied):
    _, _, outcome = studied
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


def test_promotion_keeps_the_one_before_and_rollback_swaps(base, studied):
    db, folder, _ = studied
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


def test_what_was_forgotten_is_in_no_lesson_of_the_next_study(base, studied):
    db, _, _ = studied
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


def test_a_study_that_was_killed_leaves_nothing_of_what_is_forgotten_afterwards(base, db, home):
    assert killed_in(base, [("train", 10)]) == [[signal.SIGKILL, "train", False]]
    assert list((home / "runs").glob("*/lessons.npz"))
    assert {file.name for file in (home / "study" / "1").iterdir()} >= {"lessons.jsonl", "expected.npz"}
    forget(db, find_sources(db, "notes/people.md"))
    assert not [path for path in home.rglob("*") if path.is_file() and b"Finch" in path.read_bytes()]
    assert not list((home / "runs").iterdir())
    assert not list((home / "study").iterdir())


def test_a_restarted_study_leaves_no_files_of_the_one_before(base, db, home):
    for event in study(db, order(base)):
        if isinstance(event, TrainStep):
            break
    (first,) = (home / "runs").iterdir()
    next(study(db, order(base), restart=True))
    assert not (first / "lessons.npz").exists()
    assert not (home / "study" / "1").exists()


def test_a_retired_adapter_is_made_again_from_the_lessons_of_the_other_sources(studied, home):
    db, _, _ = studied
    forgotten = forget(db, find_sources(db, "notes/people.md"))
    assert (forgotten.retired, forgotten.due) == (("notes",), ("notes",))
    assert [adapter.name for adapter in list_adapters()] == []
    assert not db.execute("select 1 from learned").fetchone()
    (due,) = all_due(db)
    events = rebuild(db, due)
    for event in events:  # stopped in the middle, it stays due
        if isinstance(event, TrainStep):
            events.close()
    assert all_due(db) == [due]
    result = CliRunner().invoke(main, ["forget", "--rebuild", "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout.splitlines()[-1])["rebuilt"]
    assert found["promoted"] is True
    assert "chunks_written" not in found  # nothing was written anew
    labels = {source["name"] for source in find_adapter("notes").card["sources"]}
    assert labels == {"notes/house.md", "notes/club.md"}
    assert all_due(db) == []
    assert not list((home / "retired").iterdir())
    assert not [path for path in home.rglob("*") if path.is_file() and b"Finch" in path.read_bytes()]


def test_where_time_is_short_an_adapter_goes_on_learning_with_some_of_what_it_knows(base, studied):
    db, folder, first = studied
    (folder / "more.md").write_text(
        "# More\n\nBo Marsk drives a green van. Bo Marsk plays the harp.\n", encoding="utf-8"
    )
    drain(remember(db, [folder]))
    book = Lessonbook(db, base_hash(find_base(base).path))
    set_note(db, f"tokens_per_s {book.base_hash}", "0.001")  # so slow that nothing fits
    second, notices = drain(study(db, order(base)))
    assert any("goes on learning" in notice for notice in notices)
    assert second.figures["goes_on"] and not first.figures["goes_on"]
    run = json.loads((runs_dir() / second.figures["run"] / "run.json").read_text())
    assert run["order"]["start"] == "notes"
    assert second.figures["lesson_tokens"] < first.figures["lesson_tokens"]
    assert second.figures["exam_questions"] >= first.figures["exam_questions"]
    assert second.figures["recall_in_use"] is not None
    assert len(find_adapter("notes").card["sources"]) == 4


def test_training_ends_in_time_for_the_exam(base, db, monkeypatch):
    monkeypatch.setattr("nightschool.study.MIN_TRAINING_S", 2.0)
    slow = StudySettings(**(QUICK | EASY | {"epochs": 1000.0}), minutes=0.05)
    set_note(db, f"tokens_per_s {base_hash(find_base(base).path)}", "1e9")  # planned by a wrong speed
    began = time.monotonic()
    outcome, notices = drain(study(db, StudyOrder(base, settings=slow, train=TRAIN)))
    assert any("the time is up" in notice for notice in notices)
    assert outcome.is_promoted
    assert time.monotonic() - began < 60
    training = outcome.adapter.card["training"]
    assert 0 < training["steps"] < training["steps_planned"]


def test_questions_of_the_persons_own_are_asked_and_never_taught(base, db, tmp_path):
    own = {"question": "What does Ada Finch do for a living?", "answer": "pilot"}
    (tmp_path / "exam.jsonl").write_text(json.dumps(own) + "\n", encoding="utf-8")
    night = order(base, exam=tmp_path / "exam.jsonl")
    for event in study(db, night):
        if isinstance(event, TrainStep):
            break
    taught = (files_of(1) / "lessons.jsonl").read_text()
    assert "What work does Ada Finch do?" in taught
    assert "do for a living" not in taught
    outcome, _ = drain(study(db, night))
    assert outcome.figures["exam_questions"] == 1
    assert outcome.figures["dropped"]["a question of your own exam"] == 1


def test_a_resumed_study_has_the_time_that_it_is_given_now(base, db):
    events = study(db, order(base))
    next(events)
    events.close()
    later = StudyOrder(base, settings=StudySettings(**QUICK, **EASY, minutes=7.0), train=TRAIN)
    state = Lessonbook(db, base_hash(find_base(base).path)).unfinished("notes")
    night = Night(db, Lessonbook(db, base_hash(find_base(base).path)), later, state.id)
    assert 400 < night.left_s <= 420
    assert night.settings.rank == 2


@pytest.mark.parametrize("option", ["--rehearsal=1", "--rank=0", "--minutes=0", "--epochs=-1", "--slots=0"])
def test_settings_that_cannot_be_are_refused(option):
    assert CliRunner().invoke(main, ["study", option]).exit_code == 2


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
