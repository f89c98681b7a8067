"""What each part of `study` is worth: the same notes learned in several ways, for the same number of tokens.

The notes are made by recipes/ember's generator with a seed that no recipe used; its own questions are the
exam, less those that any lesson asks. Facts that no writer understood count as wrong. Forgetting: the rise
of perplexity on the text that the demonstration uses.

    raw          the chunks as plain text
    one          one question a fact, by rules, answered with the note's sentence
    items        every kept question, answered with the note's sentence
    own words    the same, answered as the base answers with the sentence in view, where the check confirms it
    wordings     and every fact in at least ten lessons, the questions framed in several ways
    rehearsal    and 40% of the tokens keep the base to its own predictions on what it says of its own accord

Run: python bench/bench_study.py [--entities 8] [--seed 9001] [--tokens 45000] [--base ember]
Last line: JSON, a list of rows.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "recipes" / "ember")]

import worlds  # noqa: E402

from nightschool.adapters import Stack  # noqa: E402
from nightschool.check import gist  # noqa: E402
from nightschool.engine import Engine  # noqa: E402
from nightschool.evaluate import sit_exam  # noqa: E402
from nightschool.exam import Question, recall  # noqa: E402
from nightschool.hub import base_hash, find_base  # noqa: E402
from nightschool.lessonbook import Lessonbook  # noqa: E402
from nightschool.library import remember  # noqa: E402
from nightschool.paths import package_data  # noqa: E402
from nightschool.rehearsal import rehearse  # noqa: E402
from nightschool.runs import Order, carry_out, find_run  # noqa: E402
from nightschool.settings import StudySettings, TrainSettings  # noqa: E402
from nightschool.store import open_store  # noqa: E402
from nightschool.study import rehearsal_line  # noqa: E402
from nightschool.syllabus import Syllabus, divide, lesson_lines, line_of  # noqa: E402
from nightschool.writing import write_chunk  # noqa: E402

TOKENS_A_LINE = 26
REHEARSALS = 120
Value = TypeVar("Value")


def drain(events: Generator[Any, None, Value]) -> Value:
    """Run work to its end and return what it returns."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def write_notes(folder: Path, *, seed: int, entities: int) -> list[worlds.Fact]:
    """A page for every six entities, each fact in a random wording; the facts."""
    rng = random.Random(seed)
    pools = worlds.Pools(worlds.value_lists(), [worlds.subject(rng, "person") for _ in range(40)])
    facts: list[worlds.Fact] = []
    pages: dict[str, list[str]] = {}
    names: set[str] = set()
    while len(names) < entities:
        kind = rng.choice(worlds.KINDS)
        name = worlds.subject(rng, kind)
        if name in names:
            continue
        names.add(name)
        about = worlds.facts_about(rng, name, kind, count=6, pools=pools)
        told = " ".join(fact.statement(rng.randrange(len(fact.relation.statements))) for fact in about)
        pages.setdefault(f"page{(len(names) - 1) // 6 + 1:02}.md", []).append(
            f"## {name[0].upper()}{name[1:]}\n\n{told}\n"
        )
        facts += about
    folder.mkdir()
    for page, sections in pages.items():
        (folder / page).write_text(f"# {page[:-3]}\n\n" + "\n".join(sections), encoding="utf-8")
    return facts


def as_told(syllabus: Syllabus) -> Syllabus:
    """The same lessons with the notes' sentences as answers."""
    facts = [
        replace(
            fact, answer=told(fact), items=tuple(replace(item, answer=item.passage) for item in fact.items)
        )
        for fact in syllabus.facts
    ]
    return replace(syllabus, facts=facts)


def told(fact: Any) -> str:
    return fact.items[0].passage if fact.items else fact.answer


def variants(syllabus: Syllabus, chunks: list[str], settings: StudySettings) -> dict[str, list[str]]:
    """Name → lines of training data."""
    plain = replace(settings, repeats=0)
    first = [fact.items[0] for fact in syllabus.facts if fact.items]
    return {
        "raw": [json.dumps({"text": chunk}) for chunk in chunks],
        "one": [line_of(item.question, item.passage) for item in first if item.origin == "rules"],
        "items": lesson_lines(as_told(syllabus), plain),
        "own words": lesson_lines(syllabus, plain),
        "wordings": lesson_lines(syllabus, settings),
        "rehearsal": lesson_lines(syllabus, settings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--entities", type=int, default=8)
    parser.add_argument("--seed", type=int, default=9001)
    parser.add_argument("--tokens", type=int, default=45_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--base", default="ember")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["NIGHTSCHOOL_HOME"] = home
        rows = measure(given, Path(home))
    print(json.dumps(rows))


def measure(given: argparse.Namespace, home: Path) -> list[dict[str, Any]]:
    """A row for each variant."""
    facts = write_notes(home / "notes", seed=given.seed, entities=given.entities)
    settings = StudySettings(threads=given.threads, exam=0, dev=0)
    db = open_store()
    drain(remember(db, [home / "notes"]))
    base = find_base(given.base)
    book = Lessonbook(db, base_hash(base.path))
    sources = book.sources()
    chunks = book.unwritten(sources)
    with Engine(base.path, slots=8, threads=given.threads, ctx=512) as engine:
        for chunk in chunks:
            book.keep(chunk, drain(write_chunk(engine, chunk.text, settings)))
        said = [rehearse(engine, number, seed=0) for number in range(REHEARSALS)]
    syllabus = divide(book.items(sources), settings)
    taught = {gist(item.question) for fact in syllabus.facts for item in fact.items}
    rng = random.Random(given.seed)
    asked = [(fact, fact.question(rng.randrange(len(fact.relation.questions)))) for fact in facts]
    exam = [Question(text, fact.value) for fact, text in asked if gist(text) not in taught]
    print(f"{len(facts)} facts on {len(sources)} pages; {len(exam)} questions in wordings that no lesson has")
    rehearsal = home / "rehearsal.jsonl"
    rehearsal.write_text("\n".join(rehearsal_line(*pair) for pair in said if pair[1]) + "\n")
    rows = []
    for name, lines in variants(syllabus, [chunk.text for chunk in chunks], settings).items():
        row = one_row(name, lines, exam, given=given, rehearsal=rehearsal if name == "rehearsal" else None)
        print(
            f"{name:<10} {row['lessons']:5} lessons  recall {row['recall_before']:.2f} → {row['recall']:.2f}"
            f"  forgetting {row['forgetting']:+.3f}  {row['train_s']:.0f} s",
            flush=True,
        )
        rows.append(row)
    return rows


def one_row(
    name: str, lines: list[str], exam: list[Question], *, given: argparse.Namespace, rehearsal: Path | None
) -> dict[str, Any]:
    """Train on some lines for the given number of tokens, and examine."""
    data = Path(os.environ["NIGHTSCHOOL_HOME"]) / f"{name.replace(' ', '-')}.jsonl"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    size = sum(len(line) for line in lines) / 4.5 if name == "raw" else TOKENS_A_LINE * len(lines)
    settings = TrainSettings(
        rank=16,
        epochs=max(1.0, given.tokens / size),
        batch_tokens=1024,
        precision="fp32",
        threads=given.threads,
        rehearsal=0.4 if rehearsal else 0.0,
    )
    order = Order(given.base, (data,), data.stem, settings, rehearsal=rehearsal)
    adapter = drain(carry_out(order, find_run(order)))
    stack = Stack(given.base, ((adapter.name, 1.0),))
    general = package_data("demo/general.txt")
    found = drain(sit_exam(stack, exam, before=True, general=general, slots=8))
    return {
        "variant": name,
        "lessons": len(lines),
        "recall_before": found.recall_before,
        "recall": recall(found.answers),
        "forgetting": found.forgetting,
        "train_s": adapter.card["training"]["seconds"],
        "train_tokens": adapter.card["training"]["tokens"],
    }


if __name__ == "__main__":
    main()
