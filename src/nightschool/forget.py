"""Forget a source: gone from search at once, its lessons too, and no adapter that learned it stays in use.

Adapters that learned from it are retired first: moved off the shelf, where no stack finds them. What a model
has learned cannot be taken out of its weights, so they are made again from what is left (rebuild); that this
is due is noted before anything goes. Then all that is known of the source goes in one transaction, and the
database is purged of what deleted rows leave behind. A kill in between leaves nothing that forgetting once
more does not mend.
"""

import json
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightschool.adapters import Adapter, list_adapters
from nightschool.lessonbook import abandon, last_plan
from nightschool.library import Source, remove_sources
from nightschool.paths import home
from nightschool.promotion import NEXT, PREVIOUS, SWAP, due_key
from nightschool.store import Database, get_note, purge, set_note, transaction


@dataclass(frozen=True)
class Forgotten:
    """What came of forgetting. `gone_s`: until nothing is found any more; `seconds`: until no trace is left.

    `purged` is False where another command reads: the next one removes the traces. `kept` are adapters that
    learned from the sources and were kept on demand; `due` are those that can be made again without them.
    """

    sources: tuple[str, ...]
    chunks: int
    retired: tuple[str, ...]
    kept: tuple[str, ...]
    due: tuple[str, ...]
    gone_s: float
    seconds: float
    purged: bool


@dataclass(frozen=True)
class Due:
    """An adapter that is to be made again from these sources, as it was studied before."""

    name: str
    base: str
    sources: tuple[int, ...]
    plan: dict[str, Any]


def retired_dir() -> Path:
    """Adapters that are no longer to be used."""
    return home() / "retired"


def forget(db: Database, sources: Sequence[Source], *, keep_adapters: bool = False) -> Forgotten:
    """Forget sources with all that was made of them."""
    start_s = time.perf_counter()
    learned = adapters_of(db, sources)
    gone = [source.id for source in sources]
    due: list[str] = []
    if not keep_adapters:
        due = note_due(db, [adapter.name for adapter in learned], gone)
        for adapter in learned:
            retire(db, adapter)
    abandon(db, gone)
    remove_sources(db, gone)
    gone_s = time.perf_counter() - start_s
    purged = purge(db)
    names = tuple(adapter.name for adapter in learned)
    return Forgotten(
        sources=tuple(source.label for source in sources),
        chunks=sum(source.chunks for source in sources),
        retired=() if keep_adapters else names,
        kept=names if keep_adapters else (),
        due=tuple(due),
        gone_s=gone_s,
        seconds=time.perf_counter() - start_s,
        purged=purged,
    )


def adapters_of(db: Database, sources: Iterable[Source]) -> list[Adapter]:
    """The adapters that learned from any of the sources, by the database or by their own cards."""
    sources = list(sources)
    known = {name for source in sources for name in source.studied}
    wanted = {name for source in sources for name in (source.label, source.name)}
    return [
        adapter for adapter in list_adapters() if adapter.name in known or wanted & set(card_sources(adapter))
    ]


def card_sources(adapter: Adapter) -> list[str]:
    """The sources that an adapter's card lists: names, or objects with a name."""
    listed = adapter.card.get("sources", [])
    entries = listed if isinstance(listed, list) else []
    return [str(each.get("name", "")) if isinstance(each, dict) else str(each) for each in entries]


def retire(db: Database, adapter: Adapter) -> Path:
    """Move an adapter off the shelf; its new folder."""
    retired_dir().mkdir(parents=True, exist_ok=True)
    number = 0
    while (target := retired_dir() / f"{adapter.name}-{number}").exists():
        number += 1
    adapter.folder.rename(target)
    with transaction(db):
        db.execute("delete from learned where adapter = ?", (adapter.name,))
    return target


# Making again


def note_due(db: Database, names: Iterable[str], gone: Iterable[int]) -> list[str]:
    """Note which studied adapters are to be made again without some sources; their names.

    Nothing is due where no other source was learned, or the adapter was not made by a study.
    """
    found: list[str] = []
    gone = set(gone)
    for name in names:
        if name != root_name(name):  # a version that is not in use
            continue
        past = last_plan(db, name)
        if past is None:
            continue
        base, plan = past
        here = {int(row["id"]) for row in db.execute("select id from sources")}
        known = read_due(db, name)
        before = known.sources if known else tuple(plan["sources"])
        left = tuple(id for id in before if id in here - gone)
        note = json.dumps({"base": base, "sources": left, "plan": plan}) if left else None
        set_note(db, due_key(name), note)
        found += [name] if left else []
    return found


def root_name(name: str) -> str:
    """The name that a version of an adapter belongs to."""
    return re.sub(rf"({re.escape(NEXT)}|{re.escape(PREVIOUS)}|{re.escape(SWAP)})$", "", name)


def read_due(db: Database, name: str) -> Due | None:
    """How an adapter is to be made again, if that is due."""
    note = get_note(db, due_key(name))
    if note is None:
        return None
    values = json.loads(note)
    here = {int(row["id"]) for row in db.execute("select id from sources")}
    left = tuple(id for id in values["sources"] if id in here)
    return Due(name, values["base"], left, values["plan"]) if left else None


def all_due(db: Database) -> list[Due]:
    """Every adapter that is to be made again, in order of their names."""
    start = due_key("")
    keys = [row["key"] for row in db.execute("select key from notes order by key")]
    every = (read_due(db, key.removeprefix(start)) for key in keys if key.startswith(start))
    return [due for due in every if due]


def remove_retired(name: str) -> None:
    """Delete the retired versions of an adapter: nobody needs them once it is made again."""
    for folder in retired_dir().glob(f"{name}*") if retired_dir().is_dir() else ():
        if root_name(re.sub(r"-\d+$", "", folder.name)) == name:
            shutil.rmtree(folder, ignore_errors=True)
