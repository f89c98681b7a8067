"""What passes the check and what does not."""

from dataclasses import replace

import pytest

from nightschool.check import Item, agreed, is_question, judge, new_words, one_sentence, without_duplicates

PASSAGE = "Ada Finch works as a pilot and keeps 12 bees in Brill."


def ask(question, *, value="", origin="model", answer=""):
    return Item(PASSAGE, question, answer, value, origin)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Ada Finch works as a pilot.", ""),
        ("She is a pilot. She likes tea.", ""),  # only the first sentence is taken
        ("", "found no answer"),
        ("I do not know.", "found no answer"),
        ("The passage does not say; no information.", "found no answer"),
        ("Ada Finch works as a nurse.", "says nothing from the passage"),
        ("Ada Marsk works as a pilot.", "'Marsk'"),
        ("Ada Finch is a pilot since 1950.", "'1950'"),
        ("Ada Brill is a pilot.", "'Ada Brill'"),
        ("Ada Finch works " + "and works " * 30 + "as a pilot.", "too long"),
    ],
)
def test_a_reply_is_believed_only_as_far_as_the_passage_goes(reply, reason):
    verdict = judge(ask("What does Ada Finch work as?"), reply)
    assert reason in verdict.reason
    assert verdict.is_kept == (not reason)
    if verdict.is_kept:
        assert verdict.item.value == "pilot"


def test_a_name_that_a_small_model_broke_is_noticed():
    told = "The orange canoe belongs to Ludo Farrant."
    item = Item(told, "Who owns the orange canoe?", told, "Ludo Farrant")
    assert judge(item, "The orange can belongs to Ludo Farrant.").item.answer == told
    assert judge(item, "The orange canoe is owned by Ludo Farrant.").item.answer != told
    assert "'can'" in judge(replace(item, origin="model"), "The orange can belongs to Ludo Farrant.").reason


def test_the_rules_answer_stays_where_the_model_fails():
    item = ask("What is Ada's job?", value="pilot", origin="rules", answer=PASSAGE)
    assert judge(item, "Ada Finch works as a nurse.").item.answer == PASSAGE
    assert judge(item, "Ada Finch is a pilot.").item.answer == "Ada Finch is a pilot."


def test_a_models_own_answer_must_be_confirmed():
    item = ask("How many bees has Ada?", value="12", answer="Ada Finch keeps 12 bees.")
    assert judge(item, "Ada keeps 12 bees.").is_kept
    assert judge(item, "Ada keeps bees in Brill.").reason == "not confirmed: the answer is another one"


def test_the_value_is_what_passage_and_reply_share_and_the_question_lacks():
    assert new_words(ask("Where does Ada Finch keep bees?"), "Ada Finch keeps the bees in Brill.") == "brill"


def test_lonely_answers_of_a_model_are_dropped():
    verdicts = [
        judge(ask(question), reply)
        for question, reply in (
            ("What does Ada work as?", "Ada works as a pilot."),
            ("What is Ada's job?", "Ada works as a pilot."),
            ("What is Ada's town?", "Ada's town is Brill."),
        )
    ]
    assert [verdict.is_kept for verdict in agreed(verdicts)] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("What does Ada Finch work as?", True),
        ("Tell me where Ada keeps bees.", True),
        ("Ada Finch works as a pilot.", False),
        ("What does Una Finch work as?", False),
        ("What is the time?", False),
        ("What? Ada?", False),
        ("What does Ada\nwork as?", False),
    ],
)
def test_questions_are_about_the_passage(text, good):
    assert (not is_question(text, PASSAGE)) == good


def test_repeated_and_ambiguous_questions_are_dropped():
    items = [
        Item("Ada runs the inn.", "Who runs the inn?", "Ada runs the inn.", "Ada"),
        Item("Ada runs the inn.", "Who runs the inn ?", "Ada runs it.", "Ada"),
        Item("Bo has a cat.", "Who has a pet?", "Bo has a cat.", "Bo"),
        Item("Cy has a dog.", "Who has a pet?", "Cy has a dog.", "Cy"),
    ]
    assert [verdict.reason for verdict in without_duplicates(items)] == [
        "",
        "asked before",
        "the same question has several answers",
        "the same question has several answers",
    ]


def test_only_the_first_sentence_of_a_reply_counts():
    assert one_sentence("Mr. Finch is a pilot. He flies.\nMore") in ("Mr. Finch is a pilot.", "Mr.")
    assert one_sentence("It costs 3.50 pounds. Ada pays.") == "It costs 3.50 pounds."
