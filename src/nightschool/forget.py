"""Forget a source: gone from search at once, its lessons too, and no adapter that learned it stays in use.

Adapters that learned from it are retired first: moved off the shelf, where no stack finds them. Then all that
is known of it goes in one transaction, and the database is purged of what deleted rows leave behind. A kill
in between leaves nothing that forgetting once more does not mend.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nightschool.adapters import Adapter, list_adapters
from nightschool.lessonbook import abandon
from nightschool.library import Source, remove_sources
from nightschool.paths import home
from nightschool.store import Database, purge


@dataclass(frozen=True)
class Forgotten:
    """What came of forgetting. `gone_s`: until nothing is found any more; `seconds`: until no trace is left.

    `purged` is False where another command reads: the next one removes the traces. `kept` are adapters that
    learned from the sources and were kept on demand.
    """

    sources: tuple[str, ...]
    chunks: int
    retired: tuple[str, ...]
    kept: tuple[str, ...]
    gone_s: float
    seconds: float
    purged: bool


def retired_dir() -> Path:
    """Adapters that are no longer to be used."""
    return home() / "retired"


def forget(db: Database, sources: Sequence[Source], *, keep_adapters: bool = False) -> Forgotten:
    """Forget sources with all that was made of them."""
    start_s = time.perf_counter()
    learned = adapters_of(db, sources)
    for adapter in () if keep_adapters else learned:
        retire(adapter)
    abandon(db, [source.id for source in sources])
    remove_sources(db, [source.id for source in sources])
    gone_s = time.perf_counter() - start_s
    purged = purge(db)
    names = tuple(adapter.name for adapter in learned)
    return Forgotten(
        sources=tuple(source.label for source in sources),
        chunks=sum(source.chunks for source in sources),
        retired=() if keep_adapters else names,
        kept=names if keep_adapters else (),
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


def retire(adapter: Adapter) -> Path:
    """Move an adapter off the shelf; its new folder."""
    retired_dir().mkdir(parents=True, exist_ok=True)
    number = 0
    while (target := retired_dir() / f"{adapter.name}-{number}").exists():
        number += 1
    adapter.folder.rename(target)
    return target
