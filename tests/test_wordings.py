"""Statements → questions, by rules."""

import pytest

from nightschool.check import contains
from nightschool.exam import normalise
from nightschool.paths import package_data
from nightschool.statements import statements
from nightschool.wordings import questions


def asked(text):
    """question → value"""
    (statement,) = statements(text)
    return {question: each.value for each in questions(statement) for question in each.questions}


@pytest.mark.parametrize(
    ("text", "question", "value"),
    [
        ("Ada Finch works as a pilot.", "What is Ada Finch's job?", "pilot"),
        ("Ada Finch works as a pilot.", "As what does Ada Finch work?", "a pilot"),
        ("Ada lives in Brill.", "Where does Ada live?", "Brill"),
        ("Adult members pay ten pounds.", "How much do Adult members pay?", "ten pounds"),
        ("The vase was sold at 12 euros.", "At what price was the vase sold?", "12 euros"),
        ("The shop opens at ten.", "What time does the shop open?", "ten"),
        ("In winter the pool closes.", "When does the pool close?", "winter"),
        (
            "Every Friday the choir sings in the barn.",
            "When does the choir sing in the barn?",
            "every Friday",
        ),
        ("Every Friday the choir sings in the barn.", "Where does the choir sing?", "the barn"),
        ("Ada's best friend is Ben from Leeds.", "Who is Ada's best friend?", "Ben from Leeds"),
        ("The sale begins on 15 May.", "When does the sale begin?", "15 May"),
        ("The horn of the bus was broken by a goat.", "By what was the horn of the bus broken?", "a goat"),
        ("Ada is 83 years old.", "How old is Ada?", "83"),
        ("Ada's sister is Una Finch.", "Who is Ada's sister?", "Una Finch"),
        ("The owner of the Blue Inn is Una Finch.", "Who is the owner of the Blue Inn?", "Una Finch"),
        ("Ada gets up at quarter past five.", "When does Ada get up?", "quarter past five"),
        ("The canoe was bought in 2018.", "In which year was the canoe bought?", "2018"),
        ("The bread knife is kept behind the tins.", "Where is the bread knife?", "behind the tins"),
        ("The club starts at twenty to nine.", "When does the club start?", "twenty to nine"),
        ("The pump needs three valves.", "How many valves does the pump need?", "three valves"),
        ("Una Finch runs the Blue Inn.", "Who runs the Blue Inn?", "Una Finch"),
        ("The museum opened in 1911.", "When did the museum open?", "1911"),
        ("Ada carries a lamp.", "What does Ada carry?", "a lamp"),
    ],
)
def test_questions_ask_for_what_the_sentence_says(text, question, value):
    assert asked(text)[question] == value


def test_every_value_stands_in_its_sentence_and_in_none_of_its_questions():
    notes = package_data("demo/notes.md").read_text(encoding="utf-8")
    for statement in statements(notes):
        for each in questions(statement):
            assert contains(statement.text, each.value)
            for question in each.questions:
                assert question.endswith((".", "?"))
                assert each.value.lower() not in question.lower()
                assert set(normalise(statement.subject)) & set(normalise(question)) or question.startswith(
                    "Who"
                )


def test_facts_of_the_demonstrations_notes_are_asked_in_several_wordings():
    notes = package_data("demo/notes.md").read_text(encoding="utf-8")
    counts = [max(len(each.questions) for each in questions(s)) for s in statements(notes) if questions(s)]
    assert len(counts) >= 40
    assert sum(count >= 3 for count in counts) / len(counts) > 0.7
