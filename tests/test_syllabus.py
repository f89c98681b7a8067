"""Items become lessons and exam: never the same question in both."""

import json

import pytest

from nightschool.check import Item, gist, key
from nightschool.events import result_of
from nightschool.paths import package_data
from nightschool.settings import StudySettings
from nightschool.syllabus import FRAMES, divide, divide_in_turn, lesson_lines, lessons, some_lessons
from nightschool.writer import by_rules

SETTINGS = StudySettings()


@pytest.fixture(scope="module")
def items():
    return by_rules(package_data("demo/notes.md").read_text(encoding="utf-8"))


def drained(events):
    """(what the work returns, what it said)."""
    said = []
    return result_of(events, said.append), said


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


LATER = (
    "Petra Holm works as a baker. Petra Holm lives in Saltwick. Petra Holm plays the oboe. Petra Holm is"
    " allergic to celery. Ludo Farrant lives in Brill."
)


def test_sources_studied_later_change_nothing_in_what_was_set_aside_before(items):
    before = divide(items, SETTINGS)
    both, _ = drained(divide_in_turn([items, by_rules(LATER)], SETTINGS))
    passages = {item.passage for item in items}
    asked = [item for item in both.exam if item.passage in passages]
    assert set(asked) <= set(before.exam)
    assert len(asked) >= len(before.exam) - 2  # what the later source asks for, or contradicts
    taught = {gist(question) for question in asked_in(lesson_lines(both, SETTINGS))}
    assert not taught & {gist(item.question) for item in (*both.exam, *both.dev)}
    assert {fact.answer for fact in both.facts} <= {item.passage for item in by_rules(LATER)}
    assert any("Petra Holm" in item.question for item in both.exam)


def test_dividing_much_says_how_far_it_is(items):
    many = [Item(f"P{at} plays the oboe.", f"What does P{at} play?", "oboe", "oboe") for at in range(1000)]
    syllabus, said = drained(divide_in_turn([many, items], SETTINGS))
    total = len(many) + len(items)
    assert all((each.task, each.total) == ("dividing the lessons", total) for each in said)
    done = [each.done for each in said]
    assert done[:4] == [0, 256, 512, 768]
    assert done == sorted(done) and len(many) in done and done[-1] <= total
    assert len(syllabus.facts) + len(syllabus.earlier) > 1000


def test_what_a_later_source_contradicts_is_taught_by_neither(items):
    both, _ = drained(divide_in_turn([items, by_rules(LATER)], SETTINGS))
    answers = {
        json.loads(line)["messages"][1]["content"]
        for line in lesson_lines(both, SETTINGS)
        if json.loads(line)["messages"][0]["content"] == "Where does Ludo Farrant live?"
    }
    assert not answers
    assert both.dropped["at odds with a source studied before"] > 0


def test_a_share_of_lessons_is_spread_over_as_many_facts_as_possible(items):
    facts = divide(items, SETTINGS).facts
    every = lessons(facts, SETTINGS)
    fact_of = {each.question: at for at, fact in enumerate(facts) for each in lessons([fact], SETTINGS)}
    characters = sum(len(each.line) for each in every) * 0.05
    some = some_lessons(facts, SETTINGS, characters=characters)
    assert sum(len(each.line) for each in some) == pytest.approx(characters, rel=0.1)
    assert len({fact_of[each.question] for each in some}) > 0.9 * len(some) > 15
    assert len(some_lessons(facts, SETTINGS, characters=1e9)) == len(every)


def test_reserved_questions_are_neither_taught_nor_set_aside(items):
    question = "What is Hester Quillby's job?"
    syllabus = divide(items, SETTINGS, reserved={gist(question)})
    assert question not in asked_in(lesson_lines(syllabus, SETTINGS))
    assert question not in [item.question for item in (*syllabus.exam, *syllabus.dev)]
    assert syllabus.dropped["a question of your own exam"] == 1
