"""nightschool remember: make files, folders and notes searchable and citable at once."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nightschool.errors import NightschoolError

if TYPE_CHECKING:
    from nightschool.library import Remembered
    from nightschool.store import Database


@click.command(short_help="Make files, folders and notes searchable at once.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--text", multiple=True, metavar="TEXT", help="A note that is in no file; may be repeated.")
@click.option("--watch", is_flag=True, help="Stay, and follow every change until Ctrl-C.")
@click.option(
    "--vectors",
    metavar="auto|off|BASE",
    help="Which embedding model searches by meaning too  [default: auto]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(
    paths: tuple[Path, ...], text: tuple[str, ...], watch: bool, vectors: str | None, as_json: bool
) -> None:
    """Remember files and folders: Markdown, text, HTML, PDF, DOCX, EPUB, CSV, JSON, source code.

    Unchanged files cost nothing, changed ones replace what was known of them, deleted ones disappear. With
    nothing named, all that is known is looked at once more.

    \b
    Examples:
      nightschool remember notes/
      nightschool remember --text "The boathouse key is under the third pot."
      nightschool remember ~/Documents/manuals --watch
    """
    from nightschool.store import open_store, purge  # this loads sqlite3

    db = open_store()
    result, seconds = _remember(db, paths, text)
    if result.removed:
        purge(db)
    _make_vectors(db, vectors)
    _report(result, seconds, as_json=as_json)
    if watch:
        _watch(db, paths, as_json=as_json)
    elif result.failed and not (result.added or result.changed or result.removed or result.unchanged):
        raise NightschoolError("Nothing could be read.")


def _remember(db: "Database", paths: tuple[Path, ...], texts: tuple[str, ...]) -> "tuple[Remembered, float]":
    from nightschool.cli._progress import show  # these load rich
    from nightschool.library import Remembered, refresh, remember, remember_text

    start_s = time.perf_counter()
    result: Remembered
    if paths:
        result = show(remember(db, paths))
    else:
        result = Remembered() if texts else show(refresh(db))
    for text in texts:
        note = remember_text(db, text)
        result.added.append(note.label)
        result.chunks += note.chunks
    return result, time.perf_counter() - start_s


def _make_vectors(db: "Database", wanted: str | None) -> None:
    """With an embedding model here: a vector for each chunk that has none. Search works meanwhile."""
    from nightschool.cli._progress import show  # these load numpy and httpx
    from nightschool.vectors import OFF, choose_embedder, count_missing, embed_missing, open_embedder

    if choose_embedder(db, wanted) == OFF:
        return
    with open_embedder(db) as embedder:
        if embedder and count_missing(db, embedder.id):
            show(embed_missing(db, embedder))


def _report(result: "Remembered", seconds: float, *, as_json: bool) -> None:
    if as_json:
        failed = [{"file": name, "reason": reason} for name, reason in result.failed]
        click.echo(json.dumps(vars(result) | {"failed": failed, "seconds": round(seconds, 4)}))
        return
    counts = [
        (len(result.added), "added"),
        (len(result.changed), "changed"),
        (len(result.removed), "removed"),
        (result.unchanged, "unchanged"),
        (len(result.failed), "left out"),
    ]
    said = ", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing to remember"
    click.echo(f"{said}; {result.chunks:,} new chunks in {seconds:.2f} s.")


def _watch(db: "Database", paths: tuple[Path, ...], *, as_json: bool) -> None:
    """Look again whenever something changes, until Ctrl-C."""
    from nightschool.store import purge  # these load sqlite3, and a thread of watchfiles' own

    roots = paths or _known_folders(db)
    click.echo(f"Following {', '.join(map(str, roots))}. Ctrl-C ends it.", err=True)
    for _ in _changes(roots):
        there = tuple(path for path in roots if path.expanduser().exists())
        if not there:
            continue
        result, seconds = _remember(db, there, ())
        if result.removed:
            purge(db)
        if result.added or result.changed or result.removed:
            _make_vectors(db, None)
            _report(result, seconds, as_json=as_json)


def _known_folders(db: "Database") -> tuple[Path, ...]:
    rows = db.execute("select distinct root from sources where kind = 'file' order by root")
    roots = tuple(Path(row["root"]) for row in rows if Path(row["root"]).exists())
    if not roots:
        raise NightschoolError("There is nothing to follow yet: name a folder.")
    return roots


def _changes(roots: tuple[Path, ...]) -> Iterator[object]:
    from watchfiles import watch  # loads a compiled module

    yield from watch(*[path.expanduser() for path in roots], raise_interrupt=False)
