"""The rows of a study in the store: items written, studies under way, what adapters learned from.

`lessons` keeps items as JSON, kind "kept" or "dropped" with its reason; they go with their source. `writer`
is the hash of the base that wrote and checked them: another base writes its own. What was asked and said in
an exam is kept by the run that made the adapter, and goes with the first of its sources that goes.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nightschool.adapters import Adapter, list_adapters
from nightschool.check import Item, Verdict
from nightschool.errors import NotFound
from nightschool.paths import home, runs_dir
from nightschool.store import Database, Row, transaction

KEPT, DROPPED = "kept", "dropped"


@dataclass(frozen=True)
class Source:
    """What a person gave; `hash` is that of its present content."""

    id: int
    name: str
    label: str
    hash: str


@dataclass(frozen=True)
class Chunk:
    """A passage of a source."""

    id: int
    source_id: int
    text: str


@dataclass(frozen=True)
class Answered:
    """A question of an exam and what was said, before the study and after; `topic` is a source's label."""

    question: str
    expected: str
    topic: str | None
    before: str | None
    after: str
    right_before: bool | None
    right_after: bool


@dataclass(frozen=True)
class State:
    """How far a study is."""

    id: int
    stage: str
    plan: dict[str, Any]
    figures: dict[str, Any]


class Lessonbook:
    """What one base wrote, and the studies on it."""

    def __init__(self, db: Database, base_hash: str) -> None:
        self.db, self.base_hash = db, base_hash

    # Studies ------------------------------------------------------------------------------------

    def begin(self, adapter: str, base: str, plan: dict[str, Any]) -> int:
        """A new study, at its first stage."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with transaction(self.db):
            row = self.db.execute(
                "insert into studies (adapter, base, base_hash, stage, plan, figures, begun)"
                " values (?, ?, ?, 'write', ?, '{}', ?) returning id",
                (adapter, base, self.base_hash, json.dumps(plan), now),
            ).fetchone()
        return int(row["id"])

    def unfinished(self, adapter: str) -> State | None:
        """The study of that adapter on this base that has not come to its end."""
        row = self.db.execute(
            "select * from studies where adapter = ? and base_hash = ? and stage != 'done' order by id desc",
            (adapter, self.base_hash),
        ).fetchone()
        return None if row is None else state_of(row)

    def state(self, id: int) -> State:
        """How far a study is. Raises NotFound."""
        row = self.db.execute("select * from studies where id = ?", (id,)).fetchone()
        if row is None:
            raise NotFound(f"There is no study {id}.")
        return state_of(row)

    def past(self, id: object) -> State | None:
        """A study on this base that has come to its end, by the number that a card has."""
        row = self.db.execute(
            "select * from studies where id = ? and base_hash = ? and stage = 'done'",
            (id if isinstance(id, int) else None, self.base_hash),
        ).fetchone()
        return None if row is None else state_of(row)

    def note(self, id: int, stage: str, figures: dict[str, Any]) -> None:
        """Keep how far a study is."""
        with transaction(self.db):
            self.db.execute(
                "update studies set stage = ?, figures = ? where id = ?", (stage, json.dumps(figures), id)
            )

    def finish(self, id: int) -> None:
        """Give a study up."""
        with transaction(self.db):
            self.db.execute("update studies set stage = 'done' where id = ?", (id,))

    # Sources ------------------------------------------------------------------------------------

    def sources(self, names: Sequence[str] = (), *, learned_by: str = "") -> list[Source]:
        """Those named, with those that the adapter learned from before; all of them if none is named.

        Raises NotFound for a name that is no source's name or label.
        """
        every = [
            source_of(row)
            for row in self.db.execute(
                "select id, name, label, hash from sources where collection = '' order by id"
            )
        ]
        if not names:
            return every
        unknown = [name for name in names if not any(name in (each.name, each.label) for each in every)]
        if unknown:
            raise NotFound(f"There is no source {unknown[0]!r}; `nightschool sources` lists them.")
        rows = self.db.execute("select source_id from learned where adapter = ?", (learned_by,))
        before = {int(row["source_id"]) for row in rows}
        return [each for each in every if each.id in before or {each.name, each.label} & set(names)]

    def sources_by_id(self, ids: Sequence[int]) -> list[Source]:
        """Those of the sources that are still there."""
        return [each for each in self.sources() if each.id in set(ids)]

    def learned(self, adapter: str) -> dict[int, str]:
        """Source id → hash of the content that an adapter learned."""
        rows = self.db.execute("select source_id, hash from learned where adapter = ?", (adapter,))
        return {int(row["source_id"]): str(row["hash"]) for row in rows}

    def note_learned(self, adapter: str, sources: Sequence[Source]) -> None:
        """An adapter is about to learn from these sources and no others."""
        with transaction(self.db):
            self.db.execute("delete from learned where adapter = ?", (adapter,))
            self.db.executemany(
                "insert into learned (adapter, source_id, hash) values (?, ?, ?)",
                [(adapter, source.id, source.hash) for source in sources],
            )

    # Items --------------------------------------------------------------------------------------

    def unwritten(self, sources: Sequence[Source]) -> list[Chunk]:
        """Chunks of these sources that this base has not written about, in order."""
        rows = self.db.execute(
            "select id, source_id, text from chunks"
            " where id not in (select chunk_id from written where writer = ?) order by source_id, position",
            (self.base_hash,),
        )
        wanted = {source.id for source in sources}
        return [Chunk(row["id"], row["source_id"], row["text"]) for row in rows if row["source_id"] in wanted]

    def count_chunks(self, sources: Sequence[Source]) -> int:
        """How many chunks these sources have."""
        rows = self.db.execute("select source_id, count(*) as count from chunks group by source_id")
        counts = {row["source_id"]: int(row["count"]) for row in rows}
        return sum(counts.get(source.id, 0) for source in sources)

    def keep(self, chunk: Chunk, verdicts: Iterable[Verdict]) -> None:
        """Store what became of a chunk's items, and that the chunk is done: both or neither."""
        rows = [
            (
                chunk.source_id,
                chunk.id,
                KEPT if verdict.is_kept else DROPPED,
                json.dumps(asdict(verdict.item) | {"reason": verdict.reason}, ensure_ascii=False),
                self.base_hash,
            )
            for verdict in verdicts
        ]
        with transaction(self.db):
            self.db.execute(
                "delete from lessons where writer = ? and (chunk_id = ? or chunk_id is null)",
                (self.base_hash, chunk.id),
            )
            self.db.executemany(
                "insert into lessons (source_id, chunk_id, kind, body, writer) values (?, ?, ?, ?, ?)", rows
            )
            self.db.execute("insert or replace into written values (?, ?)", (chunk.id, self.base_hash))

    def items(self, sources: Sequence[Source]) -> list[Item]:
        """The kept items of these sources' present chunks, in order."""
        return [item_of(row["body"]) for row in self._rows(sources) if row["kind"] == KEPT]

    def count_items(self, sources: Sequence[Source]) -> int:
        """How many items were written, kept or not."""
        return len(self._rows(sources))

    def reasons(self, sources: Sequence[Source]) -> dict[str, int]:
        """Why items were dropped, and how many for each reason."""
        dropped = [json.loads(row["body"]) for row in self._rows(sources) if row["kind"] == DROPPED]
        return dict(Counter(general_reason(body["reason"]) for body in dropped))

    def _rows(self, sources: Sequence[Source]) -> list[Row]:
        wanted = {source.id for source in sources}
        rows = self.db.execute(
            "select source_id, kind, body from lessons where writer = ? and chunk_id is not null order by id",
            (self.base_hash,),
        )
        return [row for row in rows if row["source_id"] in wanted]

    # Rehearsals ---------------------------------------------------------------------------------

    def rehearsals(self) -> list[tuple[str, str]]:
        """(prompt, what the base said), in order."""
        rows = self.db.execute(
            "select prompt, said from rehearsals where base_hash = ? order by number", (self.base_hash,)
        )
        return [(row["prompt"], row["said"]) for row in rows if row["said"].strip()]

    def missing_rehearsals(self, wanted: int) -> list[int]:
        """Numbers below `wanted` that there is no text for yet."""
        rows = self.db.execute("select number from rehearsals where base_hash = ?", (self.base_hash,))
        there = {int(row["number"]) for row in rows}
        return [number for number in range(wanted) if number not in there]

    def keep_rehearsals(self, said: Iterable[tuple[int, tuple[str, str]]]) -> None:
        """Store what the base said."""
        with transaction(self.db):
            self.db.executemany(
                "insert or replace into rehearsals (base_hash, number, prompt, said) values (?, ?, ?, ?)",
                [(self.base_hash, number, prompt, text) for number, (prompt, text) in said],
            )


# Exams


def keep_exam(db: Database, adapter: Adapter, answers: Sequence[Answered]) -> None:
    """Keep an adapter's exam in place of an earlier one; exams of adapters that are gone are removed."""
    run = adapter.card.get("run")
    if not isinstance(run, str):
        return
    runs = json.dumps([run, *(str(each.card.get("run")) for each in list_adapters())])
    with transaction(db):
        for table in ("exams", "exam_answers"):
            db.execute(
                f"delete from {table} where run = ? or run not in (select value from json_each(?))",
                (run, runs),
            )
        db.execute(
            "insert into exams (run, source_id) select ?, source_id from learned where adapter = ?",
            (run, adapter.name),
        )
        db.executemany(
            "insert into exam_answers (run, number, body) values (?, ?, ?)",
            [
                (run, number, json.dumps(asdict(answer), ensure_ascii=False))
                for number, answer in enumerate(answers)
            ],
        )


def read_exam(db: Database, adapter: Adapter) -> list[Answered]:
    """The exam of an adapter; nothing where none was kept, or one of its sources is forgotten."""
    rows = db.execute(
        "select body from exam_answers where run = ? order by number", (adapter.card.get("run"),)
    )
    return [Answered(**json.loads(row["body"])) for row in rows]


def state_of(row: Row) -> State:
    return State(row["id"], row["stage"], json.loads(row["plan"]), json.loads(row["figures"]))


def source_of(row: Row) -> Source:
    return Source(row["id"], row["name"], row["label"], row["hash"])


def item_of(body: str) -> Item:
    """An item from its row."""
    values = json.loads(body)
    values.pop("reason", None)
    return Item(**values)


def general_reason(reason: str) -> str:
    """A reason without the words of the notes in it."""
    strange = "does not stand in the passage"
    return "names or numbers that are not in the passage" if strange in reason else reason


def files_of(study: int) -> Path:
    """Where the files of a study lie while it is under way."""
    return home() / "study" / str(study)


def last_plan(db: Database, adapter: str) -> tuple[str, dict[str, Any]] | None:
    """The base and the plan of the last study of an adapter that came to its end."""
    row = db.execute(
        "select base, plan from studies where adapter = ? and stage = 'done' order by id desc", (adapter,)
    ).fetchone()
    return None if row is None else (row["base"], json.loads(row["plan"]))


def abandon(db: Database, source_ids: Iterable[int]) -> None:
    """Give up unfinished studies of these sources, and remove the files that hold their lessons."""
    gone = set(source_ids)
    states = [state_of(row) for row in db.execute("select * from studies").fetchall()]
    touched = [state for state in states if gone & set(state.plan["sources"])]
    clear_files(*touched)
    with transaction(db):
        db.executemany(
            "update studies set stage = 'done' where id = ? and stage != 'done'",
            [(state.id,) for state in touched],
        )


def clear_files(*states: State) -> None:
    """Remove the files of studies, and what their runs keep of the lessons while they are unfinished."""
    folders = {files_of(state.id) for state in states}
    for record in runs_dir().glob("*/run.json") if folders else ():
        try:
            run = json.loads(record.read_text(encoding="utf-8"))
            data = [Path(name) for name in run["order"]["data"]]
        except (ValueError, LookupError, TypeError):  # begun by something else, or damaged
            continue
        if run.get("status") != "done" and any(path.parent in folders for path in data):
            shutil.rmtree(record.parent, ignore_errors=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
