"""Items become lessons and exam: never the same question in both."""

import json

import pytest

from nightschool.check import gist, key
from nightschool.paths import package_data
from nightschool.settings import StudySettings
from nightschool.syllabus import FRAMES, divide, lesson_lines
from nightschool.writer import by_rules

SETTINGS = StudySettings()


@pytest.fixture(scope="module")
def items():
    return by_rules(package_data("demo/notes.md").read_text(encoding="utf-8"))


def asked_in(lines):
    return [json.loads(line)["messages"][0]["content"] for line in lines]


@pytest.mark.parametrize("seed", range(5))
def test_no_question_of_the_exam_is_in_a_lesson_in_any_frame(items, seed):
    settings = StudySettings(seed=seed)
    syllabus = divide(items, settings)
    lessons = {gist(question) for question in asked_in(lesson_lines(syllabus, settings))}
    held = [*syllabus.exam, *syllabus.dev]
    assert len(syllabus.exam) >= 25
    assert len({key(item.question) for item in held}) == len(held)
    for item in held:
        assert not lessons & {gist(frame.format(q=item.question)) for frame in FRAMES}


def test_every_examined_fact_has_lessons(items):
    syllabus = divide(items, SETTINGS)
    taught = {(item.passage, key(item.value)) for fact in syllabus.facts for item in fact.items}
    assert {(item.passage, key(item.value)) for item in syllabus.exam} <= taught


def test_facts_with_few_wordings_get_as_many_lessons(items):
    syllabus = divide(items, SETTINGS)
    for fact in syllabus.facts:
        if len(fact.items) >= 2:
            lines = lesson_lines(type(syllabus)([fact], [], [], {}), SETTINGS)
            assert len(lines) >= SETTINGS.repeats
            assert len(set(lines)) == len(lines)


def test_the_same_items_and_seed_divide_the_same_way(items):
    assert divide(items, SETTINGS) == divide(list(items), SETTINGS)
    assert divide(items, SETTINGS).exam != divide(items, StudySettings(seed=1)).exam


def test_all_lessons_of_a_fact_teach_one_answer(items):
    for fact in divide(items, SETTINGS).facts:
        assert len({item.answer for item in fact.items}) <= 1
