"""What each part of `study` is worth: the same notes learned in several ways, for the same number of tokens.

Two sets of notes: pages made up with a seed that no recipe used (made_up_notes), and TOFU's invented
authors turned into notes, a page for each author, its answers as paragraphs (`--tofu FILE`; locuslab/TOFU,
MIT). The exam are the generator's, or TOFU's, own questions, which no lesson asks; facts that no writer
understood count as wrong. An answer is right when the fact stands in it. TOFU's answers are whole sentences:
there the figure is the share of the answer's words, less those of the question and the commonest ones, that
come back. Forgetting is the rise of perplexity on the text that the demonstration uses. Each line adds to the
one before:

    raw           the chunks as plain text
    items         one question a fact, answered with the note's sentence
    own words     the same, answered as the base answers with the sentence in view, if the check confirms it
    distillation  and beside the words the base's own probabilities when it reads the sentence
    rehearsal     and 40% of the tokens keep the base to its own predictions on what it says by itself
    wordings      and every fact in all wordings, at least ten, instead of one
    without       the same without distillation

Run: python bench/bench_study.py --tofu ../shared/data/knowledge/tofu_authors_200.jsonl
     [--pages 2] [--seed 9001] [--authors 4] [--tokens 30000] [--distil 1.0] [--base ember] [--threads 0]
Last line: JSON, a list of rows.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from made_up_notes import write_pages

from nightschool.adapters import Stack
from nightschool.check import LIGHT, READ, gist
from nightschool.decoders import read_config
from nightschool.distil import Reading, expect, prepare
from nightschool.engine import Engine
from nightschool.evaluate import sit_exam
from nightschool.events import result_of
from nightschool.exam import Answer, Question, normalise
from nightschool.gguf import open_gguf
from nightschool.hub import base_hash, find_base
from nightschool.lessonbook import Lessonbook
from nightschool.library import remember
from nightschool.model import Model
from nightschool.paths import package_data
from nightschool.rehearsal import rehearse
from nightschool.runs import DEFAULT_MAX_TOKENS, Order, carry_out, find_run
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import open_store
from nightschool.study import rehearsal_line
from nightschool.syllabus import Syllabus, Taught, divide, lessons
from nightschool.writing import write_chunk

REHEARSALS, REHEARSAL = 120, 0.4
AROUND_A_TURN = 8  # tokens that the chat template adds to a lesson, about


@dataclass(frozen=True)
class Notes:
    """A set of notes with its exam; `mark` gives what an answer is worth, from 0 to 1."""

    name: str
    folder: Path
    exam: list[Question]
    mark: Callable[[Answer], float]


@dataclass(frozen=True)
class Variant:
    """Lessons as lines, and what counts beside them."""

    name: str
    lines: list[str]
    tokens: int
    distil: float = 0.0
    rehearsal: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tofu", type=Path, help="TOFU's authors: JSONL of question and answer")
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--seed", type=int, default=9001)
    parser.add_argument("--authors", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=30_000, help="lesson tokens for each variant")
    parser.add_argument("--distil", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--base", default="ember")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="nightschool-bench-") as folder:
        for notes in all_notes(given, Path(folder)):
            os.environ["NIGHTSCHOOL_HOME"] = str(Path(folder) / f"home-{notes.name}")
            rows += measure(notes, given)
    print(json.dumps(rows))


def all_notes(given: argparse.Namespace, folder: Path) -> list[Notes]:
    """The sets of notes that are asked for."""
    found = []
    if given.pages:
        asked = write_pages(folder / "made-up", seed=given.seed, pages=given.pages)
        exam = [Question(each.question, each.answer) for each in asked]
        found.append(Notes("made-up", folder / "made-up", exam, lambda answer: float(answer.right)))
    if given.tofu:
        found.append(tofu_notes(given.tofu, folder / "tofu", authors=given.authors))
    return found


def tofu_notes(path: Path, folder: Path, *, authors: int) -> Notes:
    """TOFU's first authors, twenty questions each, as a page for each: its answers, in their order."""
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][: 20 * authors]
    folder.mkdir()
    for number in range(authors):
        told = "\n\n".join(pair["answer"] for pair in pairs[20 * number : 20 * number + 20])
        (folder / f"author{number + 1}.md").write_text(f"# Author {number + 1}\n\n{told}\n", encoding="utf-8")
    return Notes("tofu", folder, [Question(pair["question"], pair["answer"]) for pair in pairs], words_back)


def words_back(answer: Answer) -> float:
    """The share of the expected words that are neither common nor in the question that the reply has."""
    asked = set(normalise(answer.question.question)) | LIGHT
    wanted = set(normalise(answer.question.answer)) - asked
    return len(wanted & set(normalise(answer.reply))) / len(wanted) if wanted else 1.0


def measure(notes: Notes, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each variant."""
    home = Path(os.environ["NIGHTSCHOOL_HOME"])
    settings = StudySettings(threads=given.threads, exam=0, dev=0)
    db = open_store()
    result_of(remember(db, [notes.folder]))
    base = find_base(given.base)
    book = Lessonbook(db, base_hash(base.path))
    sources = book.sources()
    chunks = book.unwritten(sources)
    reserved = frozenset(gist(question.question) for question in notes.exam)
    with Engine(base.path, slots=8, threads=given.threads, ctx=512) as engine:
        for chunk in chunks:
            book.keep(chunk, result_of(write_chunk(engine, chunk.text, settings)))
        said = [rehearse(engine, number, seed=0) for number in range(REHEARSALS)]
        syllabus = divide(book.items(sources), settings, reserved=reserved)
        every = lessons(syllabus.facts, settings)
        readings = [Reading(each.question, each.answer, reading(each)) for each in every]
        limit = min(DEFAULT_MAX_TOKENS, read_config(open_gguf(base.path)).context)
        pairs = result_of(prepare(engine, readings, max_tokens=limit))
        made = variants(syllabus, [chunk.text for chunk in chunks], engine, given)
    print(f"{notes.name}: {len(chunks)} chunks, {len(syllabus.facts)} facts, {len(notes.exam)} questions")
    expected = home / "expected.npz"
    list(expect(Model(open_gguf(base.path), "fp32"), pairs, expected, top=settings.distil_top))
    rehearsal = home / "rehearsal.jsonl"
    rehearsal.write_text("\n".join(rehearsal_line(*pair) for pair in said if pair[1]) + "\n")
    rows = []
    for variant in (each for each in made if each.lines):
        row = one_row(variant, notes, given=given, files=(rehearsal, expected))
        print(
            f"| {notes.name} | {variant.name} | {row['lessons']} | {row['known_before']:.0%} → "
            f"{row['known']:.0%} | {row['forgetting']:+.1%} | {row['train_s']:.0f} s |",
            flush=True,
        )
        rows.append(row)
    return rows


def reading(lesson: Taught) -> str:
    """What the teacher is asked."""
    return READ.format(passage=lesson.passage, question=lesson.question)


def variants(
    syllabus: Syllabus, chunks: Sequence[str], engine: Engine, given: argparse.Namespace
) -> list[Variant]:
    """The lines of each variant, and how many tokens they are."""
    settings = StudySettings()
    first = [replace(fact, items=fact.items[:1], told=()) for fact in syllabus.facts if fact.items]
    one = lessons(first, replace(settings, repeats=0))
    every = lessons(syllabus.facts, settings)
    made = {
        "items": [Taught(each.question, each.passage, each.passage) for each in one],
        "own words": one,
        "distillation": one,
        "rehearsal": one,
        "wordings": every,
        "without": every,
    }
    found = [Variant("raw", [json.dumps({"text": chunk}) for chunk in chunks], count(engine, chunks))]
    for name, taught in made.items():
        tokens = count(engine, [f"{each.question} {each.answer}" for each in taught])
        found.append(
            Variant(
                name,
                [each.line for each in taught],
                tokens + AROUND_A_TURN * len(taught),
                given.distil if name in ("distillation", "rehearsal", "wordings") else 0.0,
                REHEARSAL if name in ("rehearsal", "wordings", "without") else 0.0,
            )
        )
    return found


def count(engine: Engine, texts: Sequence[str]) -> int:
    """Tokens of all texts."""
    return sum(map(len, engine.tokenize_many(texts)))


def one_row(
    variant: Variant, notes: Notes, *, given: argparse.Namespace, files: tuple[Path, Path]
) -> dict[str, Any]:
    """Train on some lines for the given number of tokens, and examine."""
    rehearsal, expected = files
    data = Path(os.environ["NIGHTSCHOOL_HOME"]) / f"{variant.name.replace(' ', '-')}.jsonl"
    data.write_text("\n".join(variant.lines) + "\n", encoding="utf-8")
    settings = TrainSettings(
        rank=16,
        epochs=max(1.0, given.tokens / variant.tokens),
        batch_tokens=1024,
        precision="fp32",
        threads=given.threads,
        rehearsal=variant.rehearsal,
    )
    order = Order(
        given.base,
        (data,),
        data.stem,
        settings,
        rehearsal=rehearsal if variant.rehearsal else None,
        expected=expected if variant.distil else None,
        distil=variant.distil,
    )
    adapter = result_of(carry_out(order, find_run(order)))
    stack = Stack(given.base, ((adapter.name, 1.0),))
    general = package_data("demo/general.txt")
    found = result_of(sit_exam(stack, notes.exam, before=True, general=general, slots=8))
    assert found.answers_before is not None
    training = adapter.card["training"]
    return {
        "notes": notes.name,
        "variant": variant.name,
        "lessons": len(variant.lines),
        "known_before": mean([notes.mark(answer) for answer in found.answers_before]),
        "known": mean([notes.mark(answer) for answer in found.answers]),
        "forgetting": found.forgetting,
        "train_s": training["seconds"],
        "train_tokens": training["tokens"],
    }


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


if __name__ == "__main__":
    main()
