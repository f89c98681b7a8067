"""nightschool forget: remove sources and everything that was made of them."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nightschool.forget import Forgotten


@click.command(short_help="Remove a source and everything made of it.")
@click.argument("names", nargs=-1, required=True, metavar="SOURCE…")
@click.option("--keep-adapters", is_flag=True, help="Leave adapters that learned from it in use.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(names: tuple[str, ...], keep_adapters: bool, as_json: bool) -> None:
    """Forget a SOURCE: a file, a folder or a note, by its path or as `nightschool sources` names it.

    It is gone from search at once, and no trace of its text stays in the database. Your own file is not
    touched. Adapters that learned from it are retired: moved from the shelf into the home's folder
    `retired`, to be deleted when you like.

    \b
    Examples:
      nightschool forget notes/boiler.md
      nightschool forget notes/
    """
    from nightschool.forget import forget  # these load numpy and sqlite3
    from nightschool.library import find_sources
    from nightschool.store import open_store

    db = open_store()
    sources = {source.id: source for name in names for source in find_sources(db, name)}
    forgotten = forget(db, list(sources.values()), keep_adapters=keep_adapters)
    if as_json:
        click.echo(json.dumps(asdict(forgotten)))
    else:
        _report(forgotten)


def _report(forgotten: "Forgotten") -> None:
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
            f"They lie in {retired_dir()}; delete them there, or study again without the source."
        )
    if forgotten.kept:
        click.echo(f"Kept, though they learned from it: {', '.join(forgotten.kept)}.")
    if not forgotten.purged:
        click.echo(
            "Another command is reading: the next `remember` or `forget` removes the traces.", err=True
        )
