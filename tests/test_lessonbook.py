"""What a study leaves in the store beside its adapter: the exam as it was asked and answered."""

import pytest
from test_study import EASY, QUICK, TRAIN, drain
from tiny import write_tiny

from nightschool.adapters import find_adapter, rename_adapter
from nightschool.forget import forget
from nightschool.lessonbook import read_exam
from nightschool.library import find_sources, remember_text
from nightschool.settings import StudySettings
from nightschool.store import open_store
from nightschool.study import StudyOrder, study

PEOPLE = "Ada Finch works as a pilot and lives in Brill. She plays the oboe. Her sister is Una Finch."
HOUSE = "The bread knife is kept behind the tins. The red canoe was bought in 2018."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf", "llama"))


def test_an_exam_is_kept_with_its_adapter_and_goes_with_a_forgotten_source(base, home):
    db = open_store()
    for name, text in (("people", PEOPLE), ("house", HOUSE)):
        remember_text(db, text, name=name)
    order = StudyOrder(base, settings=StudySettings(**QUICK, **EASY), train=TRAIN)
    outcome, _ = drain(study(db, order))
    exam = read_exam(db, outcome.adapter)
    assert len(exam) == outcome.figures["exam_questions"] > 2
    assert {answer.topic for answer in exam} == {"people", "house"}
    right = sum(answer.right_after for answer in exam) / len(exam)
    assert right == pytest.approx(outcome.figures["recall_after"])
    rename_adapter("notes", "renamed")
    adapter = find_adapter("renamed")
    assert read_exam(db, adapter) == exam
    expected = next(answer.question for answer in exam if answer.topic == "people").encode()
    db.execute("pragma wal_checkpoint(truncate)")
    assert expected in (home / "nightschool.db").read_bytes()
    forget(db, find_sources(db, "people"))
    assert read_exam(db, adapter) == []
    assert not any(expected in path.read_bytes() for path in home.rglob("*") if path.is_file())
