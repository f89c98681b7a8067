"""What the teacher expects: the base, reading the passage, at each token that the student is to learn.

The teacher is the same base with the passage before the question; the student has the question alone. One
forward pass gives the teacher's likeliest tokens at every place of the answer (prompt distillation,
arXiv:2412.14964). Where its first choice is another token than the answer's, nothing is kept: there the
answer is not the teacher's own.

A file of them grows while they are made, and is gone on with after a stop. They are found again by the
tokens of the student's lesson, whatever order the lessons come in.
"""

import hashlib
import time
import zipfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from nightschool.datasets import Conversation, Message
from nightschool.engine import Engine
from nightschool.errors import FileFormatError
from nightschool.events import Event, Progress, result_of
from nightschool.lessons import Expected, Lesson, collate, make_lessons
from nightschool.model import Model
from nightschool.paths import atomic_write

AT_ONCE = 64  # lessons between two events
PIECE_TOKENS = 1024
SAVE_EVERY_S = 30.0
KEY_BYTES = 16


@dataclass(frozen=True)
class Reading:
    """A lesson's question and answer, and the prompt that has the passage in it."""

    question: str
    answer: str
    prompt: str


def prepare(
    engine: Engine, readings: Sequence[Reading], *, max_tokens: int
) -> Generator[Event, None, list[tuple[Lesson, Lesson]]]:
    """The student's lesson and the teacher's for each reading, where both learn the same tokens."""
    pairs: list[tuple[Lesson, Lesson]] = []
    for start in range(0, len(readings), AT_ONCE):
        some = readings[start : start + AT_ONCE]
        pairs += _both(engine, some, max_tokens=max_tokens)
        yield Progress("preparing the teacher", start + len(some), len(readings))
    return pairs


def _both(engine: Engine, some: Sequence[Reading], *, max_tokens: int) -> list[tuple[Lesson, Lesson]]:
    asked = _lessons(engine, [(each.question, each.answer) for each in some], max_tokens=max_tokens)
    read = _lessons(engine, [(each.prompt, each.answer) for each in some], max_tokens=max_tokens)
    if len(asked) == len(read) == len(some):
        return [
            (one, two)
            for one, two in zip(asked, read, strict=True)
            if np.array_equal(one.tokens[one.targets], two.tokens[two.targets])
        ]
    if len(some) == 1:  # nothing to learn, or cut into several
        return []
    return [pair for each in some for pair in _both(engine, [each], max_tokens=max_tokens)]


def _lessons(engine: Engine, turns: Sequence[tuple[str, str]], *, max_tokens: int) -> list[Lesson]:
    conversations = [
        Conversation((Message("user", question), Message("assistant", answer))) for question, answer in turns
    ]
    return list(result_of(make_lessons(conversations, engine, max_tokens=max_tokens)).lessons)


def expect(
    model: Model, pairs: Sequence[tuple[Lesson, Lesson]], path: Path, *, top: int
) -> Generator[Event, None, None]:
    """Write what the teacher expects at the targets of each pair; what the file has already stays.

    Closing it between two events saves.
    """
    known = read_expected(path) if path.exists() else {}
    missing = [pair for pair in pairs if key_of(pair[0]) not in known]
    saved_s = time.monotonic()
    done = len(pairs) - len(missing)
    try:
        for some in _pieces(missing):
            found = _expected(model, [read for _, read in some], top)
            known |= {key_of(asked): each for (asked, _), each in zip(some, found, strict=True)}
            done += len(some)
            yield Progress("the teacher reads", done, len(pairs))
            if time.monotonic() - saved_s > SAVE_EVERY_S:
                _save(path, known)
                saved_s = time.monotonic()
    finally:
        _save(path, known)


def _pieces(pairs: Sequence[tuple[Lesson, Lesson]]) -> Iterator[list[tuple[Lesson, Lesson]]]:
    """Pairs whose readings are about PIECE_TOKENS long together."""
    piece: list[tuple[Lesson, Lesson]] = []
    for pair in pairs:
        if piece and sum(len(read.tokens) for _, read in (*piece, pair)) > PIECE_TOKENS:
            yield piece
            piece = []
        piece.append(pair)
    if piece:
        yield piece


def _expected(model: Model, readings: Sequence[Lesson], top: int) -> list[Expected]:
    """The teacher's top at the targets of each reading; void where its first choice is not the target."""
    batch = collate(readings, range(len(readings)))
    places = torch.from_numpy(np.flatnonzero(batch.targets) - 1).to(model.device)
    wanted = torch.from_numpy(batch.tokens[batch.targets]).long()
    with torch.no_grad():
        logs = model.logits(model.read(batch)[places]).float().log_softmax(-1)  # (M, V)
        best, tokens = (each.cpu() for each in logs.topk(min(top, logs.shape[-1]), dim=-1))
    best[tokens[:, 0] != wanted] = -torch.inf
    ends = np.cumsum([int(each.targets.sum()) for each in readings])[:-1]
    return [
        Expected(ids.astype(np.int32), values.astype(np.float16))
        for ids, values in zip(np.split(tokens.numpy(), ends), np.split(best.numpy(), ends), strict=True)
    ]


def key_of(lesson: Lesson) -> bytes:
    """What finds a lesson's expectations again: its tokens."""
    return hashlib.sha256(lesson.tokens.tobytes() + lesson.targets.tobytes()).digest()[:KEY_BYTES]


def with_expected(lessons: Sequence[Lesson], path: Path) -> list[Lesson]:
    """The lessons, each with what the teacher expected where the file has it. Raises FileFormatError."""
    known = read_expected(path)
    return [replace(lesson, expected=known.get(key_of(lesson))) for lesson in lessons]


def read_expected(path: Path) -> dict[bytes, Expected]:
    """A file's expectations by the key of their lesson."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            ends = saved["counts"].cumsum()[:-1]
            rows: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]] = list(
                zip(np.split(saved["tokens"], ends), np.split(saved["logs"], ends), strict=True)
            )
            keys = [key.tobytes() for key in saved["keys"]]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path} is damaged; begin the study again with --restart.") from error
    return {key: Expected(*row) for key, row in zip(keys, rows, strict=True)} if keys else {}


def _save(path: Path, known: dict[bytes, Expected]) -> None:
    every = list(known.values())
    width = every[0].tokens.shape[1] if every else 1
    with atomic_write(path) as draft, draft.open("wb") as file:
        np.savez(
            file,
            keys=np.frombuffer(b"".join(known), np.uint8).reshape(-1, KEY_BYTES),
            counts=np.array([len(each.tokens) for each in every], np.int64),
            tokens=np.concatenate([np.zeros((0, width), np.int32), *(each.tokens for each in every)]),
            logs=np.concatenate([np.zeros((0, width), np.float16), *(each.logs for each in every)]),
        )
