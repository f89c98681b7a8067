"""What the teacher expects: llama.cpp's own probabilities, kept where they teach the answer, found again."""

import numpy as np
import pytest
import tiny

from nightschool.datasets import Conversation, Message
from nightschool.distil import Reading, expect, key_of, prepare, read_expected, with_expected
from nightschool.engine import Engine
from nightschool.errors import FileFormatError
from nightschool.events import result_of
from nightschool.gguf import open_gguf
from nightschool.lessons import make_lessons
from nightschool.model import Model

TOP = 5
NOTES = ("the tester is on the list", "another list is for the tester", "no tester is on it")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tiny.write_tiny(tmp_path_factory.mktemp("tiny") / "t.gguf", "llama")
    with Engine(path, ctx=512, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def model(engine):
    return Model(open_gguf(engine.base), "fp32")


def greedy(engine, prompt):
    """What the base itself answers."""
    messages = [{"role": "user", "content": prompt}]
    return engine.chat(messages, temperature=0.0, max_tokens=12).strip() or "no."


@pytest.fixture(scope="module")
def readings(engine):
    prompts = [f"Here are some notes. {note} who is it?" for note in NOTES]
    return [Reading(f"who is it? {at}", greedy(engine, prompt), prompt) for at, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def pairs(engine, readings):
    return result_of(prepare(engine, readings, max_tokens=256))


def test_student_and_teacher_learn_the_same_tokens_after_different_questions(pairs, readings):
    assert len(pairs) == len(readings)
    for asked, read in pairs:
        assert np.array_equal(asked.tokens[asked.targets], read.tokens[read.targets])
        assert len(read.tokens) > len(asked.tokens)


def test_what_is_kept_is_what_llama_cpp_expects_there(engine, model, pairs, tmp_path):
    list(expect(model, pairs, tmp_path / "e.npz", top=TOP))
    compared = 0
    for asked, read in pairs:
        (lesson,) = with_expected([asked], tmp_path / "e.npz")
        for row, place in enumerate(np.flatnonzero(read.targets)):
            body = engine.complete(read.tokens[:place].tolist(), max_tokens=1, n_probs=TOP, temperature=0.0)
            best = body["completion_probabilities"][0]["top_logprobs"]
            logs = lesson.expected.logs[row]
            if best[0]["id"] != read.tokens[place]:
                assert np.isneginf(logs).all()  # the answer is not the teacher's own here
                continue
            assert lesson.expected.tokens[row][0] == best[0]["id"]
            np.testing.assert_allclose(
                logs, [each["logprob"] for each in best], atol=0.02
            )  # its cache is half precision
            compared += 1
    assert compared >= 6


def test_a_stop_between_two_pieces_is_gone_on_from(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("nightschool.distil.PIECE_TOKENS", 1)
    list(expect(model, pairs, tmp_path / "whole.npz", top=TOP))
    events = expect(model, pairs, tmp_path / "half.npz", top=TOP)
    next(events)
    events.close()
    assert len(read_expected(tmp_path / "half.npz")) == 1
    last = list(expect(model, pairs, tmp_path / "half.npz", top=TOP))
    assert [event.done for event in last] == [2, 3]
    assert (tmp_path / "half.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_expectations_are_found_by_the_lesson_in_any_order(model, pairs, engine, tmp_path):
    list(expect(model, pairs[:2], tmp_path / "e.npz", top=TOP))
    lessons = [asked for asked, _ in reversed(pairs)]
    found = with_expected(lessons, tmp_path / "e.npz")
    assert [each.expected is not None for each in found] == [False, True, True]
    assert found[2].expected.tokens.shape == (int(lessons[2].targets.sum()), TOP)
    assert len({key_of(lesson) for lesson in lessons}) == 3
    other = Conversation((Message("user", "who?"), Message("assistant", "no.")))
    (lesson,) = result_of(make_lessons([other], engine, max_tokens=256)).lessons
    assert with_expected([lesson], tmp_path / "e.npz")[0].expected is None


def test_a_reading_that_does_not_fit_is_left_out(engine, readings, pairs):
    room = max(len(asked.tokens) for asked, _ in pairs) + 1
    assert result_of(prepare(engine, readings, max_tokens=room)) == []
    long = Reading("who?", "the tester.", "on the list " * 200 + "who?")
    kept = result_of(prepare(engine, [readings[0], long, readings[1]], max_tokens=256))
    assert [key_of(asked) for asked, _ in kept] == [key_of(asked) for asked, _ in pairs[:2]]


def test_a_damaged_file_is_named(tmp_path, pairs):
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(FileFormatError, match=r"e\.npz is damaged"):
        with_expected([pairs[0][0]], tmp_path / "e.npz")
