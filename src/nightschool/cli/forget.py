"""nightschool forget: remove sources and everything that was made of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nightschool.forget import Forgotten
    from nightschool.store import Database
    from nightschool.study import Outcome


@click.command(short_help="Remove a source and everything made of it.")
@click.argument("names", nargs=-1, metavar="[SOURCE]…")
@click.option("--rebuild", "is_rebuilding", is_flag=True, help="Make the adapters again without it, now.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Time for each of them.")
@click.option("--keep-adapters", is_flag=True, help="Leave adapters that learned from it in use.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(
    names: tuple[str, ...],
    *,
    is_rebuilding: bool,
    minutes: float | None,
    keep_adapters: bool,
    as_json: bool,
) -> None:
    """Forget a SOURCE: a file, a folder or a note, by its path or as `nightschool sources` names it.

    It is gone from search at once, and no trace of its text stays in the home. Your own file is not touched.
    Adapters that learned from it are retired at once: no stack finds them any more. With --rebuild they are
    then made again from the lessons of the other sources, examined, and put to use if they pass; without
    SOURCE, those are that an earlier `forget` left to be made again.

    \b
    Examples:
      nightschool forget notes/boiler.md
      nightschool forget notes/boiler.md --rebuild
      nightschool forget --rebuild
    """
    if not names and not is_rebuilding:
        raise click.UsageError("Name a SOURCE, or give --rebuild.")
    from nightschool.forget import all_due, forget  # these load numpy and sqlite3
    from nightschool.library import find_sources
    from nightschool.store import open_store

    db = open_store()
    found: dict[str, Any] = {}
    if names:
        sources = {source.id: source for name in names for source in find_sources(db, name)}
        forgotten = forget(db, list(sources.values()), keep_adapters=keep_adapters)
        found = asdict(forgotten)
        if not as_json:
            _report(forgotten, is_rebuilding=is_rebuilding)
    if is_rebuilding:
        found["rebuilt"] = [
            _rebuilt(outcome, due.name, as_json=as_json)
            for due in all_due(db)
            for outcome in _rebuild(db, due, minutes)
        ]
    if as_json:
        click.echo(json.dumps(found))


def _rebuild(db: "Database", due: Any, minutes: float | None) -> Sequence["Outcome"]:
    """Make one adapter again, drawing what happens."""
    from nightschool.cli._progress import show  # these load rich and torch
    from nightschool.cli.train import until_interrupted
    from nightschool.rebuild import rebuild

    events = rebuild(db, due, minutes=minutes)
    return [show(until_interrupted(events, "`nightschool forget --rebuild` goes on."))]


def _rebuilt(outcome: "Outcome", name: str, *, as_json: bool) -> dict[str, Any]:
    figures = outcome.figures
    if not as_json:
        click.echo(f"{name}: exam {figures['recall_before']:.0%} → {figures['recall_after']:.0%}")
        reasons = "; ".join(outcome.reasons)
        click.echo(f"Not put to use: {reasons}." if reasons else f"{name} is in use again.")
    return {"name": name, "promoted": outcome.is_promoted, **figures}


def _report(forgotten: "Forgotten", *, is_rebuilding: bool) -> None:
    from nightschool.forget import retired_dir  # as above

    for label in forgotten.sources:
        click.echo(label)
    count = len(forgotten.sources)
    click.echo(
        f"{count} source{'s' * (count != 1)} forgotten, {forgotten.chunks:,} chunks: gone from search after "
        f"{forgotten.gone_s:.2f} s, without a trace after {forgotten.seconds:.2f} s."
    )
    if forgotten.retired:
        click.echo(
            f"Retired, because they learned from what was forgotten: {', '.join(forgotten.retired)}. "
            f"They lie in {retired_dir()}; delete them there if you like."
        )
    if forgotten.due and not is_rebuilding:
        click.echo(
            f"`nightschool forget --rebuild` makes {', '.join(forgotten.due)} again from the other sources."
        )
    if forgotten.kept:
        click.echo(f"Kept, though they learned from it: {', '.join(forgotten.kept)}.")
    if not forgotten.purged:
        click.echo(
            "Another command is reading: the next `remember` or `forget` removes the traces.", err=True
        )
