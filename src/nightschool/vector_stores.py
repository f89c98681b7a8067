"""Vector stores as OpenAI has them: files put together to be searched, each store apart from all others.

A store is a collection of sources (library) in the one memory: cut, indexed and searched as what a person
remembers is, but never mixed with it, listed with it or studied. A file that is taken out, and a store that
ends, leave no trace once `store.purge` is done. What the person remembers is a store of its own,
MEMORY_STORE, that can be read here and changed elsewhere.
"""

import json
import operator
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nightschool.documents import MAX_FILE_BYTES
from nightschool.errors import FileFormatError, NotFound
from nightschool.library import list_sources, remember_bytes, remove_sources
from nightschool.store import Database, Row, transaction
from nightschool.uploads import Upload

MEMORY_STORE = "vs_memory"
SOURCE = "src-"  # before a source's number: the id of a remembered source as a file
ACTIVE_S = 60  # a store's last activity is written down so often

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}

Attributes = Mapping[str, str | float | bool]


@dataclass(frozen=True)
class VectorStore:
    """A store and what it holds; times are seconds since 1970."""

    number: int
    id: str
    name: str
    metadata: dict[str, str]
    created_at: int
    active_at: int
    usage_bytes: int
    completed: int
    failed: int

    @property
    def is_memory(self) -> bool:
        return self.id == MEMORY_STORE

    @property
    def collection(self) -> str:
        """What its sources are called in the library."""
        return "" if self.is_memory else self.id


@dataclass(frozen=True)
class StoredFile:
    """A file in a store; without a source, but with a problem, where it could not be read."""

    number: int
    id: str
    store_id: str
    source_id: int | None
    filename: str
    batch_id: str
    attributes: dict[str, str | float | bool]
    created_at: int
    usage_bytes: int
    problem: str


def new_id(prefix: str) -> str:
    """An id as OpenAI's look: vs_…, vsfb_…"""
    return f"{prefix}_{secrets.token_hex(12)}"


# Stores -------------------------------------------------------------------------------------------

STORES = (
    "select vector_stores.*, count(source_id) as completed, count(file_id) - count(source_id) as failed,"
    " coalesce(sum(sources.size_bytes), 0) as usage_bytes from vector_stores"
    " left join vector_store_files on store_id = vector_stores.id"
    " left join sources on sources.id = source_id"
)


def create(db: Database, *, name: str, metadata: Mapping[str, str]) -> VectorStore:
    """A new store with nothing in it."""
    id, now = new_id("vs"), int(time.time())
    with transaction(db):
        db.execute(
            "insert into vector_stores (id, name, metadata, created_at, active_at) values (?, ?, ?, ?, ?)",
            (id, name, json.dumps(dict(metadata)), now, now),
        )
    return find(db, id)


def find(db: Database, id: str) -> VectorStore:
    """The store of that id. Raises NotFound."""
    if id == MEMORY_STORE:
        return memory_store(db)
    row = db.execute(f"{STORES} where vector_stores.id = ? group by vector_stores.id", (id,)).fetchone()
    if row is None:
        raise NotFound(f"There is no vector store {id!r}.")
    return _store(row)


def list_stores(db: Database) -> list[VectorStore]:
    """Every store in the order of their making; the memory comes first."""
    rows = db.execute(f"{STORES} group by vector_stores.id order by vector_stores.number")
    return [memory_store(db), *map(_store, rows)]


def memory_store(db: Database) -> VectorStore:
    """What the person remembers, as a store."""
    row = db.execute(
        "select count(*) as count, coalesce(sum(size_bytes), 0) as bytes, coalesce(min(read_ns), 0) as first,"
        " coalesce(max(read_ns), 0) as last from sources where collection = ''"
    ).fetchone()
    first, last = row["first"] // 1_000_000_000, row["last"] // 1_000_000_000
    return VectorStore(0, MEMORY_STORE, "What is remembered", {}, first, last, row["bytes"], row["count"], 0)


def _store(row: Row) -> VectorStore:
    return VectorStore(
        number=row["number"],
        id=row["id"],
        name=row["name"],
        metadata=json.loads(row["metadata"]),
        created_at=row["created_at"],
        active_at=row["active_at"],
        usage_bytes=row["usage_bytes"],
        completed=row["completed"],
        failed=row["failed"],
    )


def change(
    db: Database, store: VectorStore, *, name: str | None, metadata: Mapping[str, str] | None
) -> VectorStore:
    """Give a store another name or other metadata; None leaves what is there."""
    with transaction(db):
        db.execute(
            "update vector_stores set name = ?, metadata = ? where id = ?",
            (
                store.name if name is None else name,
                json.dumps(store.metadata if metadata is None else dict(metadata)),
                store.id,
            ),
        )
    return find(db, store.id)


def note_activity(db: Database, store: VectorStore) -> None:
    """Somebody searched it."""
    now = int(time.time())
    if not store.is_memory and now - store.active_at >= ACTIVE_S:
        with transaction(db):
            db.execute("update vector_stores set active_at = ? where id = ?", (now, store.id))


def remove(db: Database, store: VectorStore) -> None:
    """End a store with all that is in it; the uploaded files themselves stay."""
    rows = db.execute("select id from sources where collection = ?", (store.id,)).fetchall()
    remove_sources(db, [row["id"] for row in rows])
    with transaction(db):
        db.execute("delete from vector_stores where id = ?", (store.id,))


# Files --------------------------------------------------------------------------------------------

FILES = (
    "select vector_store_files.*, sources.label as label, coalesce(size_bytes, 0) as usage_bytes"
    " from vector_store_files left join sources on sources.id = source_id where store_id = ?"
)


def attach(
    db: Database, store: VectorStore, upload: Upload, *, attributes: Attributes, batch_id: str = ""
) -> StoredFile:
    """Put an uploaded file into a store, in place of what was known of it there.

    One that cannot be read is noted with the reason, and the rest goes on.
    """
    key = f"{store.id}/{upload.id}"
    source_id, problem = None, ""
    try:
        if upload.size_bytes > MAX_FILE_BYTES:
            raise FileFormatError(f"it is larger than {MAX_FILE_BYTES >> 20} MB, the limit")
        data = upload.path.read_bytes()
        source_id = remember_bytes(db, data, upload.filename, collection=store.id, key=key).id
    except FileFormatError as error:
        problem = str(error)
    except OSError:
        problem = "its bytes are gone: upload it again"
    now = int(time.time())
    with transaction(db):
        db.execute(
            "insert into vector_store_files (store_id, file_id, source_id, batch_id, attributes, created_at,"
            " problem) values (?, ?, ?, ?, ?, ?, ?) on conflict (store_id, file_id) do update set"
            " source_id = excluded.source_id, batch_id = excluded.batch_id,"
            " attributes = excluded.attributes, problem = excluded.problem",
            (store.id, upload.id, source_id, batch_id, json.dumps(dict(attributes)), now, problem),
        )
    return find_file(db, store, upload.id)


def list_files(db: Database, store: VectorStore, *, batch_id: str | None = None) -> list[StoredFile]:
    """The files of a store, or those that came in a batch, in the order in which they came."""
    if store.is_memory:
        return _remembered(db)
    where, values = ("", ()) if batch_id is None else (" and batch_id = ?", (batch_id,))
    return [_file(row) for row in db.execute(f"{FILES}{where} order by number", (store.id, *values))]


def find_file(db: Database, store: VectorStore, file_id: str) -> StoredFile:
    """One file of a store. Raises NotFound."""
    if store.is_memory:
        found = next((file for file in _remembered(db) if file.id == file_id), None)
    else:
        row = db.execute(f"{FILES} and file_id = ?", (store.id, file_id)).fetchone()
        found = None if row is None else _file(row)
    if found is None:
        raise NotFound(f"There is no file {file_id!r} in the vector store {store.id!r}.")
    return found


def _remembered(db: Database) -> list[StoredFile]:
    return [
        StoredFile(
            number=source.id,
            id=f"{SOURCE}{source.id}",
            store_id=MEMORY_STORE,
            source_id=source.id,
            filename=source.label,
            batch_id="",
            attributes={"kind": source.kind, "title": source.title[:512]},
            created_at=source.read_s,
            usage_bytes=source.size_bytes,
            problem="",
        )
        for source in sorted(list_sources(db), key=lambda source: source.id)
    ]


def _file(row: Row) -> StoredFile:
    return StoredFile(
        number=row["number"],
        id=row["file_id"],
        store_id=row["store_id"],
        source_id=row["source_id"],
        filename=row["label"] or "",
        batch_id=row["batch_id"],
        attributes=json.loads(row["attributes"]),
        created_at=row["created_at"],
        usage_bytes=row["usage_bytes"],
        problem=row["problem"],
    )


def describe(db: Database, file: StoredFile, attributes: Attributes) -> None:
    """Give a file of a store other attributes."""
    with transaction(db):
        db.execute(
            "update vector_store_files set attributes = ? where store_id = ? and file_id = ?",
            (json.dumps(dict(attributes)), file.store_id, file.id),
        )


def detach(db: Database, file: StoredFile) -> None:
    """Take a file out of its store; the uploaded file itself stays."""
    if file.source_id is not None:
        remove_sources(db, [file.source_id])
    with transaction(db):
        db.execute(
            "delete from vector_store_files where store_id = ? and file_id = ?", (file.store_id, file.id)
        )


def passages(db: Database, file: StoredFile) -> list[str]:
    """The text of a file as it is searched, in order."""
    rows = db.execute("select text from chunks where source_id = ? order by position", (file.source_id,))
    return [row["text"] for row in rows]


# Batches ------------------------------------------------------------------------------------------


def begin_batch(db: Database, store: VectorStore) -> str:
    """Note that several files come together; the batch's id."""
    id = new_id("vsfb")
    with transaction(db):
        db.execute(
            "insert into vector_store_batches (id, store_id, created_at) values (?, ?, ?)",
            (id, store.id, int(time.time())),
        )
    return id


def batch_time(db: Database, store: VectorStore, id: str) -> int:
    """When a batch came. Raises NotFound."""
    row = db.execute(
        "select created_at from vector_store_batches where id = ? and store_id = ?", (id, store.id)
    ).fetchone()
    if row is None:
        raise NotFound(f"There is no file batch {id!r} in the vector store {store.id!r}.")
    return int(row["created_at"])


# Filters ------------------------------------------------------------------------------------------


def fits(attributes: Attributes, filter: Mapping[str, Any]) -> bool:
    """Whether a file's attributes pass a filter: a comparison, or `and` and `or` of filters.

    An attribute that is not there is unequal to everything, and neither greater nor less.
    """
    kind = str(filter["type"])
    if kind in ("and", "or"):
        found = [fits(attributes, each) for each in filter["filters"]]
        return all(found) if kind == "and" else any(found)
    value, wanted = attributes.get(filter["key"]), filter["value"]
    if kind in ("in", "nin"):
        return any(_is_equal(value, each) for each in wanted) == (kind == "in")
    if kind in ("eq", "ne"):
        return _is_equal(value, wanted) == (kind == "eq")
    return _compares(value, wanted, kind)


def _is_equal(value: object, wanted: object) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _compares(value: object, wanted: object, kind: str) -> bool:
    """Numbers with numbers, and texts with texts: dates as ISO 8601 has them compare well."""
    for types in ((int, float), (str,)):
        if isinstance(value, types) and isinstance(wanted, types):
            return COMPARISONS[kind](value, wanted)
    return False


def sources_of(files: Sequence[StoredFile], filter: Mapping[str, Any] | None) -> dict[int, StoredFile]:
    """The files to search, by their sources: those that were read and pass the filter."""
    return {
        file.source_id: file
        for file in files
        if file.source_id is not None and (filter is None or fits(file.attributes, filter))
    }
