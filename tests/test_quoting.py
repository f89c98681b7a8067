"""The sentence that answers a question, word for word, found among others."""

import pytest

from nightschool.index import Index, content_words
from nightschool.library import remember_text
from nightschool.quoting import MAX_CHARACTERS, best_quotation, sentences
from nightschool.store import open_store

NOTES = """# The house

Ann Hale has the front room. She keeps bees, and she is 83 years old. Her sister is Petra.

Ludo Farr comes on weekdays. He is 37 years old. The canoe was bought in 2018.

## Kitchen

- The bread knife is behind the flour tins.
- The boiler manual is in the piano.

The key was a gift from Mr. Vole, says Dr. Pym.
"""


@pytest.fixture
def index():
    db = open_store()
    remember_text(db, NOTES)
    return Index(db)


def quoted(index, question):
    best = best_quotation(question, index.search(question), index.weights(content_words(question)))
    return best.text if best else None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Where is the bread knife?", "The bread knife is behind the flour tins."),
        ("Where is the manual of the boiler?", "The boiler manual is in the piano."),
        ("Where does Ludo keep the canoe?", "The canoe was bought in 2018."),
        ("Who gave us the key?", "The key was a gift from Mr. Vole, says Dr. Pym."),
    ],
)
def test_the_sentence_with_the_words_of_the_question_is_quoted(index, question, answer):
    assert answer in quoted(index, question)


def test_a_sentence_that_points_back_is_quoted_with_what_it_points_to(index):
    expected = "Ann Hale has the front room. She keeps bees, and she is 83 years old."
    assert expected in quoted(index, "What does Ann Hale keep?")


def test_a_number_is_quoted_where_one_is_asked_for(index):
    assert "He is 37 years old." in quoted(index, "How old is Ludo Farr?")


def test_every_quotation_stands_in_the_notes(index):
    flat = " ".join(NOTES.replace("- ", "").split())
    for question in ("bees", "Ann", "When was it bought?", "sister of Ann Hale", "room front knife piano"):
        text = quoted(index, question)
        assert text.rstrip("…") in flat
        assert len(text) <= MAX_CHARACTERS


def test_nothing_is_quoted_where_nothing_was_found(index):
    assert quoted(index, "zeppelin") is None


def test_a_very_long_sentence_is_cut_where_the_quotation_ends():
    db = open_store()
    remember_text(db, "The zeppelin " + "flew and " * 60 + "landed.")
    text = quoted(Index(db), "zeppelin")
    assert text.startswith("The zeppelin flew") and text.endswith("…")
    assert len(text) <= MAX_CHARACTERS


def test_a_passage_falls_into_its_sentences():
    assert sentences("# A\n\nOne is. Two\nis! “Three?” Four.\n\n* five\n* six\n\n---\n") == [
        "A", "One is.", "Two is!", "“Three?”", "Four.", "five", "six",
    ]  # fmt: skip
    assert sentences(" \n") == []
