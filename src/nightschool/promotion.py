"""Which version of a studied adapter is in use: a candidate beside it, the one before it, and one step back.

    adapters/<name>            in use
    adapters/<name>.next       just studied, not promoted (yet)
    adapters/<name>.previous   what the last promotion replaced

Each change is a few renames that can be repeated: a kill between two of them is mended by doing it again. The
store's table `learned` says which adapter learned from which sources, and follows the renames.
"""

import json
from dataclasses import dataclass
from typing import Any

from nightschool.adapters import (
    CARD,
    Adapter,
    find_adapter,
    list_adapters,
    remove_adapter,
    rename_adapter,
    with_snapshots,
)
from nightschool.errors import NotFound
from nightschool.paths import write_text
from nightschool.store import Database, transaction

NEXT, PREVIOUS, SWAP = ".next", ".previous", ".swap"
LESS_THAN_IN_USE = 0.05  # an adapter in use may have learned some of the questions: it is not held to less


@dataclass(frozen=True)
class Gate:
    """How much must be gained, and how little may be lost, for an adapter to be promoted."""

    min_gain: float
    max_forgetting: float
    max_fabrication: float

    def failures(self, figures: dict[str, Any]) -> list[str]:
        """Why these figures do not pass; nothing where they do."""
        gain = figures["recall_after"] - figures["recall_before"]
        found = []
        if gain < self.min_gain:
            found.append(f"recall rose by {gain:.0%}, less than the {self.min_gain:.0%} asked for")
        in_use = figures.get("recall_in_use")
        if in_use is not None and figures["recall_after"] < in_use - LESS_THAN_IN_USE:
            found.append(
                f"recall is {figures['recall_after']:.0%}, and {in_use:.0%} with the adapter that is in use"
            )
        for name, limit in (("forgetting", self.max_forgetting), ("fabrication", self.max_fabrication)):
            if figures.get(name) is not None and figures[name] > limit:
                found.append(f"{name} is {figures[name]:.1%}, above the limit of {limit:.0%}")
        return found


def exists(name: str) -> bool:
    """Whether there is an adapter of exactly that name."""
    return any(adapter.name == name for adapter in list_adapters())


def amend_card(adapter: Adapter, **changes: Any) -> Adapter:
    """Write more into an adapter's card."""
    card = adapter.card | changes
    write_text(adapter.folder / CARD, json.dumps(card, indent=1) + "\n")
    return Adapter(adapter.name, adapter.folder, card)


def promote(db: Database, name: str) -> Adapter:
    """Put the candidate of `name` into use; what was in use becomes the previous one. Raises NotFound."""
    mend(db, name)
    candidate = name + NEXT
    if not exists(candidate):
        raise NotFound(f"There is no candidate {candidate!r} to promote: `nightschool study` makes one.")
    if exists(name):
        if exists(name + PREVIOUS):
            drop(db, name + PREVIOUS)
        move(db, name, name + PREVIOUS)
    move(db, candidate, name)
    return find_adapter(name)


def roll_back(db: Database, name: str) -> Adapter:
    """Swap what is in use with what was in use before it. Raises NotFound where there is none."""
    mend(db, name)
    previous = name + PREVIOUS
    if not exists(previous):
        raise NotFound(f"There is no earlier version of {name!r} to go back to.")
    if exists(name):
        move(db, name, name + SWAP)
    move(db, previous, name)
    if exists(name + SWAP):
        move(db, name + SWAP, previous)
    return find_adapter(name)


def mend(db: Database, name: str) -> None:
    """Finish a rollback that was killed half-way."""
    if not exists(name + SWAP):
        return
    if not exists(name):
        move(db, name + PREVIOUS, name)
    move(db, name + SWAP, name + PREVIOUS)


def tidy(db: Database, name: str) -> None:
    """Forget what versions learned that are no longer there: a kill may have come after a rename."""
    with transaction(db):
        for version in (name + NEXT, name, name + PREVIOUS, name + SWAP):
            if not exists(version):
                db.execute("delete from learned where adapter = ?", (version,))


def due_key(name: str) -> str:
    """The note in the store that says how an adapter is to be made again, while that is due."""
    return f"rebuild {name}"


def retire(db: Database, name: str) -> None:
    """Delete every version of a studied adapter, and the snapshots of a fine-tuned one."""
    versions = [version for version in (name + NEXT, name + PREVIOUS, name + SWAP) if exists(version)]
    for version in (*versions, *(adapter.name for adapter in with_snapshots(name))):
        drop(db, version)


def move(db: Database, old: str, new: str) -> None:
    """Rename an adapter; what it learned from is renamed first, and again where a kill came in between."""
    copy_learned(db, old, new)
    rename_adapter(old, new)
    with transaction(db):
        db.execute("delete from learned where adapter = ?", (old,))


def copy_learned(db: Database, old: str, new: str) -> None:
    """Note for `new` what `old` learned from; both are noted while the rename is under way."""
    with transaction(db):
        db.execute("delete from learned where adapter = ?", (new,))
        db.execute(
            "insert into learned (adapter, source_id, hash) select ?, source_id, hash from learned"
            " where adapter = ?",
            (new, old),
        )


def drop(db: Database, name: str) -> None:
    """Remove an adapter and the note of what it learned from."""
    remove_adapter(name)
    with transaction(db):
        db.execute("delete from learned where adapter = ?", (name,))
