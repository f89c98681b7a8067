"""nightschool ask: an answer from what was remembered, with citations."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightschool.errors import DataError, NotFound

if TYPE_CHECKING:
    from nightschool.answer import Answer
    from nightschool.engine import Engine

Ask = Callable[[str], "Answer"]


@click.command(short_help="Answer from what was remembered, with citations.")
@click.argument("question", nargs=-1)
@click.option(
    "-m", "--model", metavar="STACK", default="ember", show_default=True, help="base+adapter@scale+…"
)
@click.option("--closed-book", "is_closed_book", is_flag=True, help="Ask the weights alone: no search.")
@click.option(
    "--file", "questions", type=click.Path(path_type=Path), help='JSONL with a "question" in each line.'
)
@click.option("--threads", type=click.IntRange(1), help="[default: the physical cores]")
@click.option("--json", "as_json", is_flag=True, help="Print answer, citations and seconds as JSON.")
def command(
    question: tuple[str, ...],
    model: str,
    is_closed_book: bool,
    questions: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Answer a QUESTION from what `nightschool remember` was given, and say where it stands.

    A base too small to read only points: the best sentence is quoted. "I do not know" means that nothing
    fits.

    \b
    Examples:
      nightschool ask "How do I reset the boiler?"
      nightschool ask --closed-book -m ember+work "Who keeps the boathouse key?"
      nightschool ask --file questions.jsonl --json > answers.jsonl
    """
    asked = list(_questions(question, questions))
    with ExitStack() as opened:
        ask = _asker(opened, model, is_closed_book=is_closed_book, threads=threads or 0)
        for each in asked:
            _print(each, ask(each), as_json=as_json, many=questions is not None)


def _questions(words: tuple[str, ...], file: Path | None) -> Iterator[str]:
    """From the command line, from a file, or from standard input."""
    if file is not None:
        yield from _from_file(file)
        return
    text = " ".join(words).strip()
    if not text and not sys.stdin.isatty():
        text = sys.stdin.read().strip()
    if not text:
        raise click.UsageError("There is no question.")
    yield text


def _from_file(file: Path) -> Iterator[str]:
    if not file.is_file():
        raise NotFound(f"There is no file {str(file)!r}.")
    problems: list[str] = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except ValueError:
            record = None
        text = record.get("question") if isinstance(record, dict) else None
        if isinstance(text, str) and text.strip():
            yield text.strip()
        else:
            problems.append(f"line {number}: not an object with a question")
    if problems:
        raise DataError(
            f"{file} has lines that are no questions; mend them:\n  " + "\n  ".join(problems[:20])
        )


def _asker(opened: ExitStack, model: str, *, is_closed_book: bool, threads: int) -> Ask:
    """The way this base answers, with all that it needs open."""
    from nightschool.adapters import parse_stack  # these load numpy and httpx
    from nightschool.answer import Memory, can_read, closed_book, quote
    from nightschool.hub import find_base
    from nightschool.index import Index
    from nightschool.store import database_path, open_store
    from nightschool.vectors import open_embedder

    stack = parse_stack(model)
    if is_closed_book:
        engine = opened.enter_context(_engine(model, threads=threads))
        return lambda question: closed_book(question, engine, stack=stack.scales)
    nothing = NotFound("Nothing is known yet: give me something with `nightschool remember`.")
    if not database_path().exists():  # looking makes no home
        raise nothing
    db = open_store()
    opened.callback(db.close)
    if not db.execute("select 1 from sources").fetchone():
        raise nothing
    index = Index(db, opened.enter_context(open_embedder(db, threads=threads)))
    if not can_read(find_base(stack.base)):
        reader = opened.enter_context(_engine(stack.base, threads=threads))
        return lambda question: quote(question, index, reader)
    memory = Memory(index, opened.enter_context(_engine(model, threads=threads)))
    return lambda question: memory.ask(question, stack=stack.scales)


def _engine(model: str, *, threads: int) -> "Engine":
    """The engine of a stack, every adapter checked against the base."""
    from nightschool.adapters import check_fits, parse_stack, stack_paths  # these load numpy and httpx
    from nightschool.engine import Engine
    from nightschool.gguf import open_gguf
    from nightschool.hub import find_base

    stack = parse_stack(model)
    base, adapters = find_base(stack.base), stack_paths(stack)
    for path in adapters.values():
        check_fits(path, open_gguf(base.path))
    return Engine(base.path, adapters=adapters, threads=threads)


def _print(question: str, answer: "Answer", *, as_json: bool, many: bool) -> None:
    if as_json:
        asked = {"question": question} if many else {}
        click.echo(json.dumps(asked | answer.as_json(), ensure_ascii=False))
        return
    if many:
        click.echo(f"> {question}")
    mark = "quoted: " if answer.quoted else ""
    click.echo(mark + answer.text)
    if answer.citations:
        click.echo()
    for citation in answer.citations:
        click.echo(str(citation))
    if many:
        click.echo()
