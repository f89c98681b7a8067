"""Exams: what counts as right, what a file may look like, and perplexity against a plain computation."""

import json

import numpy as np
import pytest
import torch
from tiny import write_tiny

from nightschool.adapters import Stack
from nightschool.attention import Documents
from nightschool.engine import Engine
from nightschool.errors import DataError, FileFormatError, NotFound
from nightschool.evaluate import general_lessons, perplexity, sit_exam
from nightschool.events import result_of
from nightschool.exam import Question, is_right, load_exam, normalise
from nightschool.gguf import open_gguf
from nightschool.model import Model


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("Ann is a beekeeper.", "beekeeper", True),
        ("She keeps bees.", "beekeeper", False),
        ("The Old Mill", "old mill", True),
        ("Mill, old", "old mill", False),
        ("It opens at quarter past five!", "quarter past five", True),
        ("It opens at a quarter to five.", "quarter past five", False),
        ("It is Tobin's hearse.", "Tobin", True),
        ("Captain Fudge", "cap", False),
        ("It is 1877.", "1877", True),
        ("It is 18770.", "1877", False),
        ("", "a", False),
        ("A", "a", True),
        (" ".join(map(str, range(100))), "77", False),
    ],
)
def test_an_answer_is_right_when_its_words_stand_in_the_reply(reply, answer, right):
    assert is_right(reply, Question("?", answer)) is right


def test_an_alias_is_as_good_as_the_answer():
    assert is_right("At 5:15", Question("?", "quarter past five", ("5:15",)))


def test_normalising_drops_case_punctuation_and_articles():
    assert normalise("The Cat's  hat, a HAT!") == ["cat", "hat", "hat"]


def test_exams_are_read_and_training_data_serves_too(tmp_path):
    exam = tmp_path / "exam.jsonl"
    exam.write_text(
        '{"question": "a?", "answer": "b", "aliases": ["c"]}\n\n{"question": "d?", "answer": "e"}\n'
    )
    assert load_exam(exam) == [Question("a?", "b", ("c",)), Question("d?", "e")]
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    exam.write_text(json.dumps({"messages": turns}) + "\n")
    assert load_exam(exam) == [Question("a?", "b")]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (
            '{"question": "a?", "answer": "b"}\nnonsense\n{"question": "a?"}\n',
            DataError,
            "line 2.*\n.*line 3",
        ),
        ('{"question": "a?", "answer": 7}\n', DataError, "line 1"),
        ('{"question": "a?", "answer": "..."}\n', DataError, "line 1"),
        ("just a story\n", DataError, "is not JSON"),
        ("", FileFormatError, "is empty|holds no"),
    ],
)
def test_a_bad_exam_is_refused_with_all_its_lines(tmp_path, text, error, words):
    exam = tmp_path / "exam.jsonl"
    exam.write_text(text)
    with pytest.raises(error, match=words):
        load_exam(exam)


def test_a_missing_exam_is_named(tmp_path):
    with pytest.raises(NotFound, match="no exam"):
        load_exam(tmp_path / "none.jsonl")


def test_perplexity_equals_a_plain_computation(tmp_path):
    path = write_tiny(tmp_path / "t.gguf", "llama")
    (tmp_path / "general.txt").write_text(
        "the line and the story in one\n\nanother one is here to be read\n" * 20
    )
    with Engine(path) as engine:
        lessons = result_of(general_lessons(tmp_path / "general.txt", engine))
    model = Model(open_gguf(path))
    losses = []
    for lesson in lessons:
        tokens = torch.from_numpy(lesson.tokens).long()
        hidden = model.hidden(tokens, torch.arange(len(tokens)), Documents.of([len(tokens)]))
        logs = model.logits(hidden).log_softmax(-1)
        assert lesson.targets[1:].all()
        losses += (-logs[:-1].gather(1, tokens[1:, None])[:, 0]).tolist()
    assert perplexity(model, {}, lessons) == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)


def test_a_bare_base_forgets_nothing(tmp_path):
    path = write_tiny(tmp_path / "t.gguf", "llama")
    (tmp_path / "general.txt").write_text("the line and the story in one " * 30)
    questions = [Question("who?", "nobody"), Question("what?", "nothing")]
    found = result_of(sit_exam(Stack(str(path)), questions, before=True, general=tmp_path / "general.txt"))
    assert found.forgetting == pytest.approx(0.0, abs=1e-9)
    assert [a.reply for a in found.answers] == [a.reply for a in found.answers_before]
    assert [a.question for a in found.answers] == questions
