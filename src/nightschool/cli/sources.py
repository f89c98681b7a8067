"""nightschool sources: what is known, indexed, studied, stale."""

import json
from dataclasses import asdict

import click


@click.command(short_help="List what is remembered, studied and stale.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(as_json: bool) -> None:
    """List everything that was remembered: its chunks, which adapters studied it, and what is out of date.

    \b
    Examples:
      nightschool sources
      nightschool sources --json
    """
    from nightschool.library import list_sources  # these load sqlite3
    from nightschool.store import database_path, open_store

    sources = list_sources(open_store()) if database_path().exists() else []
    if as_json:
        click.echo(json.dumps([asdict(source) for source in sources]))
        return
    if not sources:
        click.echo("Nothing is known yet: `nightschool remember` takes files, folders and notes.")
        return
    width = max(len(source.label) for source in sources)
    for source in sources:
        studied = f"studied by {', '.join(source.studied)}" if source.studied else "not studied"
        stale = f"; stale: {source.stale}" if source.stale else ""
        title = f"  {source.title}" if source.kind == "note" else ""
        click.echo(f"{source.label:<{width}}  {source.chunks:5,} chunks  {studied}{stale}{title}")
    stale_count = sum(bool(source.stale) for source in sources)
    if stale_count:
        click.echo(f"\n{stale_count} out of date: `nightschool remember` looks at all of them again.")
