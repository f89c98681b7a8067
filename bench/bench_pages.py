"""The whole of it on notes that nobody has seen: remember, ask, study, examine, forget a page, make again.

A fresh home; made-up pages (made_up_notes) with one question for every fact, written by the generator and
kept out of every lesson. Through the functions that the commands call:

    ask       the share of questions whose answer holds the fact and cites the right page
    study     closed-book recall before and after, forgetting, seconds in all
    forget    one page goes, with --rebuild: recall of that page, and of all others, afterwards

Run: python bench/bench_pages.py [--pages 10] [--seed 770077] [--minutes 15] [--base ember] [--threads 0]
Last line: JSON, the figures; before it a row for bench/RESULTS.md.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from made_up_notes import Asked, write_pages

from nightschool.adapters import Stack, stack_paths
from nightschool.answer import Memory, can_read, quote
from nightschool.cli._progress import show
from nightschool.engine import Engine
from nightschool.events import result_of
from nightschool.exam import Question, examine, is_right
from nightschool.forget import all_due, forget
from nightschool.hub import find_base
from nightschool.index import Index
from nightschool.library import find_sources, remember
from nightschool.rebuild import rebuild
from nightschool.receipt import Meter
from nightschool.settings import StudySettings
from nightschool.store import Database, open_store
from nightschool.study import StudyOrder, study

NAME = "notes"
COLUMNS = (
    "| base | pages · facts · words | remembered in | asked: right and rightly cited | recall | forgetting | "
    "study | page forgotten: its recall | the others' |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--entities", type=int, default=6, help="on a page")
    parser.add_argument("--facts", type=int, default=6, help="about an entity")
    parser.add_argument("--seed", type=int, default=770_077)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--base", default="ember")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--distil", type=float, default=StudySettings().distil)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightschool-bench-") as home:
        os.environ["NIGHTSCHOOL_HOME"] = home
        found = measure(given, Path(home))
    print(COLUMNS)
    print(row(found))
    print(json.dumps(found))


def measure(given: argparse.Namespace, home: Path) -> dict[str, Any]:
    """All figures."""
    meter = Meter()
    folder = home / "given" / "notes"
    asked = write_pages(
        folder, seed=given.seed, pages=given.pages, entities=given.entities, facts=given.facts
    )
    db = open_store()
    began = time.perf_counter()
    result_of(remember(db, [folder]))
    found: dict[str, Any] = {
        "base": given.base,
        "seed": given.seed,
        "pages": given.pages,
        "facts": len(asked),
        "words": sum(len(page.read_text().split()) for page in folder.iterdir()),
        "remember_s": round(time.perf_counter() - began, 3),
        "ask": ask_all(db, asked, given),
    }
    questions = home / "given" / "exam.jsonl"
    lines = [{"question": each.question, "answer": each.answer} for each in asked]
    questions.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    settings = StudySettings(minutes=given.minutes, threads=given.threads, distil=given.distil)
    began = time.perf_counter()
    order = StudyOrder(given.base, name=NAME, settings=settings, exam=questions)
    outcome = show(study(db, order))
    found["study_s"] = round(time.perf_counter() - began, 1)
    found["study"] = {key: value for key, value in outcome.figures.items() if key != "training"}
    found["promoted"] = outcome.is_promoted
    if outcome.is_promoted:
        found["forget"] = forget_a_page(db, asked, given)
    found["seconds"] = round(meter.receipt().seconds, 1)
    found["peak_rss_bytes"] = meter.receipt().peak_rss_bytes
    return found


def ask_all(db: Database, asked: Sequence[Asked], given: argparse.Namespace) -> dict[str, float]:
    """How many questions are answered rightly, with the right citation, and how fast."""
    index, base = Index(db), find_base(given.base)
    right = cited = both = declined = 0
    began = time.perf_counter()
    with Engine(base.path, threads=given.threads) as engine:
        memory = Memory(index, engine) if can_read(base) else None
        for each in asked:
            answer = memory.ask(each.question, stack={}) if memory else quote(each.question, index, engine)
            is_answered = is_right(answer.text, Question(each.question, each.answer))
            is_cited = any(citation.source == each.page for citation in answer.citations)
            right, cited, both = right + is_answered, cited + is_cited, both + (is_answered and is_cited)
            declined += not answer.known
    count = len(asked)
    return {
        "right": right / count,
        "cited": cited / count,
        "right_and_cited": both / count,
        "declined": declined / count,
        "seconds_each": round((time.perf_counter() - began) / count, 4),
    }


def recall_by_page(asked: Sequence[Asked], given: argparse.Namespace) -> dict[str, float]:
    """Closed-book, with the adapter in use."""
    stack = Stack(given.base, ((NAME, 1.0),))
    questions = [Question(each.question, each.answer) for each in asked]
    with Engine(
        find_base(given.base).path, adapters=stack_paths(stack), slots=8, threads=given.threads, ctx=512
    ) as engine:
        answers = result_of(examine(engine, questions, stack=stack.scales))
    pages: dict[str, list[bool]] = {}
    for each, answer in zip(asked, answers, strict=True):
        pages.setdefault(each.page, []).append(answer.right)
    return {page: sum(right) / len(right) for page, right in pages.items()}


def forget_a_page(db: Database, asked: Sequence[Asked], given: argparse.Namespace) -> dict[str, Any]:
    """Forget the page in the middle, make the adapter again, and see what is known then."""
    pages = list(dict.fromkeys(each.page for each in asked))
    page = pages[len(pages) // 2]
    before = recall_by_page(asked, given)
    forgotten = forget(db, find_sources(db, page))
    began = time.perf_counter()
    (due,) = all_due(db)
    outcome = show(rebuild(db, due, minutes=given.minutes))
    found: dict[str, Any] = {
        "page": page,
        "without_a_trace_s": round(forgotten.seconds, 3),
        "rebuild_s": round(time.perf_counter() - began, 1),
        "promoted": outcome.is_promoted,
        "reasons": outcome.reasons,
    }
    if not outcome.is_promoted:
        return found
    after = recall_by_page(asked, given)
    return found | {
        "page_before": before[page],
        "page_after": after[page],
        "others_before": share_without(before, page, asked),
        "others_after": share_without(after, page, asked),
    }


def share_without(pages: dict[str, float], page: str, asked: Sequence[Asked]) -> float:
    """Recall over all questions but a page's."""
    others = [each for each in asked if each.page != page]
    return sum(pages[each.page] for each in others) / max(1, len(others))


def row(found: dict[str, Any]) -> str:
    """The figures as a row of a table."""
    studied, gone = found["study"], found.get("forget", {})
    cells = [
        found["base"],
        f"{found['pages']} · {found['facts']} · {found['words']:,}",
        f"{found['remember_s']:.2f} s",
        f"{found['ask']['right_and_cited']:.1%}",
        f"{studied['recall_before']:.0%} → {studied['recall_after']:.0%}",
        f"{studied['forgetting']:+.1%}",
        f"{found['study_s']:.0f} s" + ("" if found["promoted"] else ", not promoted"),
        f"{gone['page_before']:.0%} → {gone['page_after']:.0%}" if "page_after" in gone else "–",
        f"{gone['others_before']:.0%} → {gone['others_after']:.0%}" if "page_after" in gone else "–",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
