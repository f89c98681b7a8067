"""Exams: closed-book questions, asked through the engine, and how replies are judged.

An exam is a JSONL file of {"question", "answer", "aliases"?}. An answer is right when the expected words
stand in it, in order and next to each other, lower-cased and without punctuation and articles (as SQuAD's
script has it, arXiv:1606.05250). Only the first words of a reply are read, so that listing everything does
not help, and every reply is kept, so that a person can judge for themselves.
"""

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nightschool.datasets import load_dataset
from nightschool.engine import Engine
from nightschool.errors import DataError, FileFormatError, NotFound
from nightschool.events import Event
from nightschool.parallel import side_by_side

READ_WORDS = 30  # a reply is judged by its first words
MAX_TOKENS = 48
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Question:
    """One item of an exam; any of the aliases is as good as the answer."""

    question: str
    answer: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a model said to a question, and whether it was right."""

    question: Question
    reply: str
    right: bool


def load_exam(path: Path) -> list[Question]:
    """Read an exam; a data set in any training format serves too: its first question, its first answer.

    Raises:
        NotFound, FileFormatError: no such file, or not of these kinds.
        DataError: all lines that are no question, by number.
    """
    if not path.is_file():
        raise NotFound(f"There is no exam {str(path)!r}.")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found: list[Question] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is None or not ("question" in record and "answer" in record):
            if not found and not problems:
                return _from_dataset(path)
            problems.append(f"line {number}: not an object with a question and an answer")
            continue
        aliases = record.get("aliases", [])
        texts = [record["question"], record["answer"], *(aliases if isinstance(aliases, list) else [None])]
        known = [text for text in texts if isinstance(text, str) and normalise(text)]
        if len(known) < len(texts):
            problems.append(f"line {number}: question, answer and aliases must be texts with words in them")
            continue
        found.append(Question(known[0], known[1], tuple(known[2:])))
    if problems:
        shown = "\n  ".join(problems[:20])
        raise DataError(f"{path} has {len(problems)} lines that are no exam questions; mend them:\n  {shown}")
    if not found:
        raise FileFormatError(f"{path} holds no questions.")
    return found


def _parse(line: str) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def _from_dataset(path: Path) -> list[Question]:
    found = []
    for conversation in load_dataset(path):
        asked = [message.content for message in conversation.messages if message.role == "user"]
        said = [message.content for message in conversation.messages if message.role == "assistant"]
        if asked and said:
            found.append(Question(asked[0], said[0]))
    if not found:
        raise FileFormatError(f"{path} holds no questions: an exam is JSONL with question and answer.")
    return found


def normalise(text: str) -> list[str]:
    """The words of a text: lower case, no punctuation, no articles unless there is nothing else."""
    bare = re.sub(r"[^\w\s]", " ", text.lower().replace("'s", "").replace("\u2019s", ""))
    return ARTICLES.sub(" ", bare).split() or bare.split()


def is_right(reply: str, question: Question) -> bool:
    """Whether the expected answer, or an alias, stands in the first words of the reply."""
    words = normalise(reply)[:READ_WORDS]
    for answer in (question.answer, *question.aliases):
        wanted = normalise(answer)[:READ_WORDS]
        if any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1)):
            return True
    return False


def examine(
    engine: Engine,
    questions: Sequence[Question],
    *,
    stack: Mapping[str, float] | None = None,
    task: str = "examining",
) -> Generator[Event, None, list[Answer]]:
    """Ask every question by itself, greedily, one in each of the engine's slots; the value is the answers."""

    def ask(question: Question) -> Answer:
        messages = [{"role": "user", "content": question.question}]
        reply = engine.chat(messages, stack=stack, temperature=0.0, max_tokens=MAX_TOKENS).strip()
        return Answer(question, reply, is_right(reply, question))

    answers = yield from side_by_side(ask, questions, at_once=engine.settings.slots, task=task)
    return answers


def recall(answers: Sequence[Answer]) -> float:
    """The share of right answers."""
    return sum(answer.right for answer in answers) / max(1, len(answers))
