"""Chunks: every character once and in order, short enough, under the right headings."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool.chunks import MAX_CHARACTERS, Document, cut
from nightschool.documents import read_markdown

WORDS = st.text(alphabet=string.ascii_letters + string.digits + " .!?\n\t,é…“”—", max_size=400)
LINES = st.one_of(
    WORDS,
    st.builds(lambda level, text: "#" * level + " " + text, st.integers(1, 6), st.text("abc", min_size=1)),
    st.sampled_from(["", "```", "---", "===", "x" * 2000, "a b " * 600]),
)
TEXTS = st.lists(LINES, max_size=30).map("\n".join)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_every_character_is_in_exactly_one_chunk(text):
    document = read_markdown(text, "title")
    chunks = cut(document)
    if not text.strip():
        assert chunks == []
        return
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert chunk.text == text[chunk.start : chunk.stop]
        assert chunk.text.strip()
        assert len(chunk.text.strip()) <= MAX_CHARACTERS


def paths(text):
    return [(chunk.heading, chunk.text.strip()) for chunk in cut(read_markdown(text, "t"))]


def test_a_section_is_a_chunk_under_the_path_of_its_headings():
    text = "# Boiler\n\nIt is old.\n\n## Reset\n\nHold the knob.\n\n### Winter\n\nTwice.\n\n"
    text += "## Service\n\nIn May.\n"
    assert paths(text) == [
        ("Boiler", "# Boiler\n\nIt is old."),
        ("Boiler › Reset", "## Reset\n\nHold the knob."),
        ("Boiler › Reset › Winter", "### Winter\n\nTwice."),
        ("Boiler › Service", "## Service\n\nIn May."),
    ]


def test_a_heading_without_text_belongs_to_what_follows():
    assert paths("# A\n\n## B\n\nText.\n") == [("A › B", "# A\n\n## B\n\nText.")]


def test_text_before_the_first_heading_has_none():
    assert paths("Hello.\n\n# A\n\nText.\n") == [("", "Hello."), ("A", "# A\n\nText.")]


def test_a_long_section_is_cut_between_paragraphs_and_keeps_its_heading():
    paragraph = "The cat sat on the mat. " * 15
    chunks = cut(read_markdown(f"# A\n\n{paragraph}\n\n{paragraph}\n\n{paragraph}\n", "t"))
    assert {chunk.heading for chunk in chunks} == {"A"}
    assert all(chunk.text.endswith("\n") for chunk in chunks)


@pytest.mark.parametrize(("piece", "end"), [("A cat sat. ", ". "), ("cat ", " "), ("x", "x")])
def test_a_long_paragraph_is_cut_between_sentences_or_else_words_or_else_anywhere(piece, end):
    chunks = cut(Document("t", piece * 2000))
    assert len(chunks) > 1
    assert all(chunk.text.endswith(end) for chunk in chunks)


def test_a_rest_that_is_barely_too_long_is_cut_in_halves():
    first, second = cut(Document("t", "word " * (MAX_CHARACTERS // 5 + 4)))
    assert len(second.text) > MAX_CHARACTERS // 3
    assert len(first.text) > MAX_CHARACTERS // 3
