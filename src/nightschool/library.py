"""What the person has given: files, folders and notes, kept up to date in the database.

A file is read again only when its size or time has changed, and cut again only when its bytes have. Each
source is written in one transaction: a kill at any moment leaves the old state of a source or the new one.

Sources of a vector store are a collection of their own: nothing here lists, finds or refreshes them but what
is given the collection's name.
"""

import hashlib
import os
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from nightschool.chunks import Document, cut
from nightschool.documents import find_files, parse_document, read_document
from nightschool.errors import FileFormatError, NotFound
from nightschool.events import Event, Notice, Progress
from nightschool.store import Database, Row, set_note, transaction

# A file written within so short a time before it was read may have been written again without a new time.
SAME_MOMENT_NS = 2_000_000_000
TITLE_WORDS = 8
MEMORY = ""  # the collection of what the person remembers


@dataclass(frozen=True)
class Source:
    """A file, a note or an upload that is known.

    `hash` is its content's; `studied` are adapters that learned it; `read_s` is seconds since 1970.
    """

    id: int
    name: str
    label: str
    kind: str
    title: str
    hash: str
    chunks: int
    size_bytes: int
    read_s: int
    studied: tuple[str, ...]
    stale: str  # why what is known may be out of date; empty when it is not


@dataclass
class Remembered:
    """What came of remembering; `failed` are names with reasons."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    chunks: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def remember(db: Database, paths: Sequence[Path]) -> Generator[Event, None, Remembered]:
    """Read files and folders, new and changed ones only; what is gone from a folder is removed.

    A file that cannot be read is named in the result, and the rest goes on.
    Raises NotFound when a path is not there at all, before anything is read.
    """
    roots = [Path(os.path.abspath(path.expanduser())) for path in paths]
    if missing := [str(path) for path, root in zip(paths, roots, strict=True) if not root.exists()]:
        raise NotFound(f"There is no {' and no '.join(map(repr, missing))}.")
    result = Remembered()
    files = [(root, file) for root in roots for file in (find_files(root) if root.is_dir() else [root])]
    for done, (root, file) in enumerate(files):
        yield Progress("reading", done, len(files))
        yield from _remember_file(db, file, root=root, result=result)
    yield Progress("reading", len(files), len(files))
    for root in roots:
        _remove_missing(db, root, result)
    return result


def refresh(db: Database) -> Generator[Event, None, Remembered]:
    """Look at everything known once more. A folder that is gone as a whole is named, and kept."""
    roots = [Path(row["root"]) for row in db.execute("select distinct root from sources where kind = 'file'")]
    result = yield from remember(db, [root for root in roots if root.exists()])
    for root in roots:
        if root.exists():
            continue
        if (
            root.parent.is_dir()
            and db.execute("select 1 from sources where name = ?", (str(root),)).fetchone()
        ):
            _remove_missing(db, root, result)
        else:
            result.failed.append((str(root), "it is not there; what is known of it was kept"))
    return result


def _is_source(db: Database, path: Path) -> bool:
    return db.execute("select 1 from sources where name = ?", (str(path),)).fetchone() is not None


def _remember_file(
    db: Database, path: Path, *, root: Path, result: Remembered
) -> Generator[Event, None, None]:
    known = db.execute("select * from sources where name = ?", (str(path),)).fetchone()
    read_ns = time.time_ns()
    try:
        if known and _is_untouched(path, known):
            result.unchanged += 1
            return
        state = path.stat()
        hash = _hash_file(path)
        if known and known["hash"] == hash:
            _set_times(db, known["id"], state.st_mtime_ns, read_ns)
            result.unchanged += 1
            return
        document = read_document(path)
    except (FileFormatError, NotFound, OSError) as error:
        reason = str(error) + ("; the version known before was kept" if known else "")
        result.failed.append((_label(db, path, root), reason))
        yield Notice(f"{path}: left out: {reason}.")
        return
    label = known["label"] if known else _label(db, path, root)
    row = (str(path), label, str(root), "file", document.title, hash)
    result.chunks += write_source(db, (*row, state.st_size, state.st_mtime_ns, read_ns), document)
    (result.changed if known else result.added).append(label)


def _is_untouched(path: Path, known: Row) -> bool:
    state = path.stat()
    same = (state.st_size, state.st_mtime_ns) == (known["size_bytes"], known["modified_ns"])
    return same and known["modified_ns"] < known["read_ns"] - SAME_MOMENT_NS


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_times(db: Database, id: int, modified_ns: int, read_ns: int) -> None:
    with transaction(db):
        db.execute("update sources set modified_ns = ?, read_ns = ? where id = ?", (modified_ns, read_ns, id))


def _label(db: Database, path: Path, root: Path) -> str:
    """What citations say: the path from the folder that was given; the whole path where that is taken."""
    label = path.name if path == root else f"{root.name}/{path.relative_to(root).as_posix()}"
    return _free_label(db, label, str(path))


def write_source(
    db: Database, row: tuple[str | int, ...], document: Document, *, collection: str = MEMORY
) -> int:
    """Write a source and its chunks in place of what was known of it; the number of chunks.

    Args:
        row: name, label, root, kind, title, hash, size_bytes, modified_ns, read_ns.
    """
    chunks = cut(document)
    with transaction(db):
        old = db.execute("select id from sources where name = ?", (row[0],)).fetchone()
        if old:
            db.execute("delete from chunks where source_id = ?", (old["id"],))
            set_note(db, "purge", "due")
        columns = "name, label, root, kind, title, hash, size_bytes, modified_ns, read_ns, collection"
        update = ", ".join(f"{column} = excluded.{column}" for column in columns.split(", ")[1:])
        (id,) = db.execute(
            f"insert into sources ({columns}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            f" on conflict (name) do update set {update} returning id",
            (*row, collection),
        ).fetchone()
        db.executemany(
            "insert into chunks (source_id, position, start, stop, title, heading, text)"
            " values (?, ?, ?, ?, ?, ?, ?)",
            [(id, c.position, c.start, c.stop, document.title, c.heading, c.text) for c in chunks],
        )
    return len(chunks)


def _remove_missing(db: Database, root: Path, result: Remembered) -> None:
    """Remove the files of a folder that are there no longer."""
    prefix = str(root) + os.sep
    rows = db.execute(
        "select id, name, label from sources where kind = 'file' and (name = ? or substr(name, 1, ?) = ?)",
        (str(root), len(prefix), prefix),
    ).fetchall()
    gone = [row for row in rows if not os.path.exists(row["name"])]
    remove_sources(db, [row["id"] for row in gone])
    result.removed += [row["label"] for row in gone]


def remember_text(db: Database, text: str, *, name: str = "") -> Source:
    """Keep a note that is in no file; one of the same name is replaced.

    Raises FileFormatError when there are no words in it.
    """
    data = text.encode()
    document = parse_document(data, "note.md")
    hash = hashlib.sha256(data).hexdigest()
    title = document.title if document.headings else " ".join(text.split()[:TITLE_WORDS])
    key, label = (f"note/{name}", name) if name else (f"note-{hash[:8]}", f"note-{hash[:8]}")
    document = Document(title, document.text, document.headings)
    return _write(db, key, document, label=_free_label(db, label, key), kind="note", data=data)


def remember_bytes(
    db: Database, data: bytes, name: str, *, collection: str = MEMORY, key: str | None = None
) -> Source:
    """Keep the bytes of a file that lies elsewhere; what was known under the same key is replaced.

    Args:
        name: what the file is called there; its ending says of what kind it is.
        key: what tells the source from all others, by default its name.
    Raises:
        FileFormatError: with the reason why it cannot be read.
    """
    key = key or f"upload/{name}"
    document = parse_document(data, name)
    label = name if collection else _free_label(db, name, key)
    return _write(db, key, document, label=label, kind="upload", data=data, collection=collection)


def _free_label(db: Database, label: str, key: str) -> str:
    taken = db.execute(
        "select 1 from sources where label = ? and name != ? and collection = ''", (label, key)
    ).fetchone()
    return key if taken else label


def _write(
    db: Database,
    key: str,
    document: Document,
    *,
    label: str,
    kind: str,
    data: bytes,
    collection: str = MEMORY,
) -> Source:
    """Write a source that is in no file of this machine."""
    now_ns = time.time_ns()
    hash = hashlib.sha256(data).hexdigest()
    known = db.execute(
        "select 1 from sources where name = ? and label = ? and hash = ? and collection = ?",
        (key, label, hash, collection),
    ).fetchone()
    if known:  # writing it anew would undo what was made of it
        return next(source for source in list_sources(db, collection) if source.name == key)
    row = (key, label, key, kind, document.title, hash, len(data), now_ns, now_ns)
    write_source(db, row, document, collection=collection)
    return next(source for source in list_sources(db, collection) if source.name == key)


def remove_sources(db: Database, ids: Iterable[int]) -> None:
    """Remove sources with all that was made of them, in one transaction; `store.purge` is due then."""
    with transaction(db):
        for id in ids:
            db.execute("delete from chunks where source_id = ?", (id,))
            db.execute("delete from sources where id = ?", (id,))
            set_note(db, "purge", "due")


# What is known ------------------------------------------------------------------------------------


def list_sources(db: Database, collection: str = MEMORY) -> list[Source]:
    """Every source of a collection, in order of labels."""
    studied: dict[int, list[tuple[str, str]]] = {}
    for row in db.execute("select * from learned order by adapter"):
        studied.setdefault(row["source_id"], []).append((row["adapter"], row["hash"]))
    rows = db.execute(
        "select sources.*, (select count(*) from chunks where source_id = sources.id) as chunks"
        " from sources where collection = ? order by label",
        (collection,),
    )
    return [_source(row, studied.get(row["id"], [])) for row in rows]


def _source(row: Row, studied: list[tuple[str, str]]) -> Source:
    return Source(
        id=row["id"],
        name=row["name"],
        label=row["label"],
        kind=row["kind"],
        title=row["title"],
        hash=row["hash"],
        chunks=row["chunks"],
        size_bytes=row["size_bytes"],
        read_s=row["read_ns"] // 1_000_000_000,
        studied=tuple(adapter for adapter, _ in studied),
        stale=_stale(row, studied),
    )


def _stale(row: Row, studied: list[tuple[str, str]]) -> str:
    if row["kind"] == "file":
        try:
            state = os.stat(row["name"])
        except OSError:
            return "the file is there no longer"
        if (state.st_size, state.st_mtime_ns) != (row["size_bytes"], row["modified_ns"]):
            return "the file has changed since it was read"
    old = [adapter for adapter, hash in studied if hash != row["hash"]]
    return f"{', '.join(old)} learned an earlier version" if old else ""


def short_label(label: str) -> str:
    """A label for other machines to see: of a whole path, which stands where a short one was taken, the last
    two parts.
    """
    path = PurePath(label)
    return "/".join(path.parts[-2:]) if path.is_absolute() else label


def find_sources(db: Database, name: str) -> list[Source]:
    """The sources of a label, a path, or a folder that was remembered. Raises NotFound."""
    sources = list_sources(db)
    path = os.path.abspath(os.path.expanduser(name))
    label = name.replace(os.sep, "/").rstrip("/")
    found = [source for source in sources if source.label == label or source.name in (name, path)]
    found = found or [
        source
        for source in sources
        if source.name.startswith(path + os.sep) or source.label.startswith(label + "/")
    ]
    if not found:
        raise NotFound(f"Nothing is known of {name!r}. `nightschool sources` lists what is.")
    return found
