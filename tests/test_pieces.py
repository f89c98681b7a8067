"""Tokens as bytes, held against what llama.cpp makes of each of them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import write_tiny

from nightschool.engine import Engine
from nightschool.gguf import open_gguf
from nightschool.pieces import Pieces, offsets, shown


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def vocabulary(request, tmp_path_factory):
    """SentencePiece with a space before every text, and bytes without."""
    base = write_tiny(tmp_path_factory.mktemp("pieces") / "m.gguf", request.param, layers=1)
    with Engine(base) as engine:
        yield engine, Pieces(open_gguf(base).metadata)


def test_every_token_is_the_text_that_llama_cpp_makes_of_it(vocabulary):
    engine, pieces = vocabulary
    anchor = engine.tokenize("the")[-1:]  # SentencePiece leaves out the space that a text begins with
    before = engine.detokenize(anchor)
    for token in range(3, len(pieces)):
        text = pieces[token].decode(errors="replace")
        assert engine.detokenize([*anchor, token]).removeprefix(before) == text, token


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="the stoné を\n👋🏽.", min_size=1, max_size=30))
def test_the_pieces_of_a_text_are_the_text_and_each_begins_where_its_offset_says(vocabulary, text):
    engine, pieces = vocabulary
    found = [pieces[token] for token in engine.tokenize(text)]
    whole = b"".join(found).decode()
    assert whole in (text, f" {text}")
    starts = offsets(found, text)
    assert starts[0] == 0 and starts == sorted(starts) and starts[-1] < len(text)
    for at, (piece, start) in enumerate(zip(found, starts, strict=True)):
        if not shown(piece).startswith("bytes:") and at > 0:
            assert text[start:].startswith(piece.decode())


def test_part_of_a_character_is_shown_as_bytes():
    assert shown("é".encode()) == "é" and shown("é".encode()[:1]) == "bytes:\\xc3"
