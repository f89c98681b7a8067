"""The one SQLite file: opening it, bringing its tables up to date, leaving no trace of what was deleted.

Modules that keep rows receive the open connection and never import sqlite3. Tables change only by a new
function at the end of MIGRATIONS; old ones are never edited.

Deleted bytes are overwritten (secure_delete), with two exceptions that `purge` sees to: FTS5 keeps deleted
words in old segments of its index until these are merged, and the write-ahead log keeps pages until it is
truncated.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nightschool.errors import StoreError
from nightschool.paths import home

Database = sqlite3.Connection
Row = sqlite3.Row

FILE = "nightschool.db"
WAIT_S = 30  # for another command that writes
PAGE_BYTES = 16384  # merging the full-text index at 100,000 chunks takes a third less than with 4096
CACHE_KIB = 64 << 10
TOKENIZER = "porter unicode61 remove_diacritics 2"


def database_path() -> Path:
    """Where the home's database lies."""
    return home() / FILE


def open_store(path: Path | None = None) -> Database:
    """Open a database, the home's by default; it is made, or brought up to date, when need be.

    Raises StoreError for a file that is no database, or one written by a later version.
    """
    path = path or database_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    try:
        db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise StoreError(f"The database {str(path)!r} cannot be opened: {error}.") from error
    if new:
        path.chmod(0o600)  # it will hold what the person wrote
    db.row_factory = sqlite3.Row
    try:
        _configure(db)
        migrate(db)
    except sqlite3.OperationalError as error:
        db.close()
        raise _unwritable(error) from error
    except sqlite3.DatabaseError as error:
        db.close()
        raise StoreError(
            f"The database {str(path)!r} is damaged or no database ({error}): move it away; "
            "`nightschool remember` builds a new one from your files."
        ) from error
    except StoreError:
        db.close()
        raise
    return db


def open_scratch() -> Database:
    """A database in memory, empty."""
    return sqlite3.connect(":memory:")


def _configure(db: Database) -> None:
    if db.execute("pragma page_count").fetchone()[0] == 0:  # later these do nothing, but wait for writers
        db.execute(f"pragma page_size = {PAGE_BYTES}")
        db.execute("pragma auto_vacuum = incremental")
    db.execute("pragma journal_mode = wal")  # readers go on while one writes
    db.execute("pragma synchronous = normal")
    db.execute("pragma secure_delete = on")
    db.execute("pragma foreign_keys = on")
    db.execute(f"pragma cache_size = -{CACHE_KIB}")


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """Everything in the block happens, or nothing.

    Raises StoreError when another command holds the file, or it cannot be written.
    """
    try:
        db.execute("begin immediate")
        yield
        db.execute("commit")
    except BaseException as error:
        if db.in_transaction:  # SQLite may have rolled back by itself
            db.execute("rollback")
        if isinstance(error, sqlite3.OperationalError):
            raise _unwritable(error) from error
        raise


def _unwritable(error: sqlite3.OperationalError) -> Exception:
    """What to say to the person; the error itself where it is a mistake of ours."""
    if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(f"Another command is writing to the database ({error}): try again later.")
    if error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY):
        return StoreError(f"The database cannot be written ({error}): make room, or free the file.")
    return error


def purge(db: Database) -> bool:
    """Remove what deleted rows left behind, and give the room back; False while a reader prevents it.

    What is due is noted in the database: a purge that a kill prevented is done by the next one.
    """
    if get_note(db, "purge") is None:
        return True
    with transaction(db):
        db.execute("insert into chunks_fts (chunks_fts) values ('optimize')")
    db.executescript("pragma incremental_vacuum")  # execute() would stop after one page
    busy: int = db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
    if busy:
        return False
    set_note(db, "purge", None)
    db.execute("pragma wal_checkpoint(truncate)")
    return True


def get_note(db: Database, key: str) -> str | None:
    """A small fact about the database itself."""
    row = db.execute("select value from notes where key = ?", (key,)).fetchone()
    return None if row is None else str(row["value"])


def set_note(db: Database, key: str, value: str | None) -> None:
    """Keep a small fact; None removes it."""
    if value is None:
        db.execute("delete from notes where key = ?", (key,))
    else:
        db.execute("insert or replace into notes (key, value) values (?, ?)", (key, value))


def migrate(db: Database) -> None:
    """Run the missing migrations in one transaction: all of them happen, or none."""
    if _version(db) == len(MIGRATIONS):
        return
    with transaction(db):
        version = _version(db)  # another command may have come first
        if version > len(MIGRATIONS):
            raise StoreError(
                f"The database is at version {version}, and this program knows only {len(MIGRATIONS)}: "
                "upgrade nightschool, or move the file away."
            )
        for step in MIGRATIONS[version:]:
            step(db)
        db.execute(f"pragma user_version = {len(MIGRATIONS)}")


def _version(db: Database) -> int:
    return int(db.execute("pragma user_version").fetchone()[0])


def m001_sources_and_chunks(db: Database) -> None:
    # name: an absolute path, or the name of a note; label: what citations say; root: the folder it was
    # found in. The times decide whether a file must be read again.
    db.execute(
        "create table sources (id integer primary key, name text not null unique, label text not null,"
        " root text not null, kind text not null, title text not null, hash text not null,"
        " size_bytes integer not null, modified_ns integer not null, read_ns integer not null)"
    )
    # start and stop count characters in the document's text.
    db.execute(
        "create table chunks (id integer primary key, source_id integer not null references sources"
        " on delete cascade, position integer not null, start integer not null, stop integer not null,"
        " title text not null, heading text not null, text text not null)"
    )
    db.execute("create index chunks_by_source on chunks (source_id)")
    db.execute("create table notes (key text primary key, value text not null) without rowid")


def m002_full_text(db: Database) -> None:
    columns = "title, heading, text"
    db.execute(
        f"create virtual table chunks_fts using fts5({columns}, content = chunks, content_rowid = id,"
        f" tokenize = '{TOKENIZER}')"
    )
    db.execute("insert into chunks_fts (chunks_fts, rank) values ('pgsz', 16000)")
    old, new = ("old.title, old.heading, old.text", "new.title, new.heading, new.text")
    db.execute(
        "create trigger chunk_added after insert on chunks begin"
        f" insert into chunks_fts (rowid, {columns}) values (new.id, {new}); end"
    )
    db.execute(
        "create trigger chunk_deleted after delete on chunks begin"
        f" insert into chunks_fts (chunks_fts, rowid, {columns}) values ('delete', old.id, {old}); end"
    )


def m003_vectors(db: Database) -> None:
    # vector: float16, of length one. model: vectors of different models are never compared.
    db.execute(
        "create table vectors (model text not null, chunk_id integer not null references chunks"
        " on delete cascade, vector blob not null, primary key (model, chunk_id)) without rowid"
    )
    db.execute("create index vectors_by_chunk on vectors (chunk_id)")


def m004_studies(db: Database) -> None:
    # What was made of a source goes with it. hash: the source's when it was studied.
    db.execute(
        "create table lessons (id integer primary key, source_id integer not null references sources"
        " on delete cascade, chunk_id integer references chunks on delete set null,"
        " kind text not null, body text not null)"
    )
    db.execute("create index lessons_by_source on lessons (source_id)")
    db.execute("create index lessons_by_chunk on lessons (chunk_id)")
    db.execute(
        "create table learned (adapter text not null, source_id integer not null references sources"
        " on delete cascade, hash text not null, primary key (adapter, source_id)) without rowid"
    )
    db.execute("create index learned_by_source on learned (source_id)")


def m005_study(db: Database) -> None:
    # A study goes through its stages; plan and figures are JSON. written: chunks a base has made lessons of.
    # What a base says of its own accord is kept for later studies on it.
    db.execute(
        "create table studies (id integer primary key, adapter text not null, base text not null,"
        " base_hash text not null, stage text not null, plan text not null, figures text not null,"
        " begun text not null)"
    )
    db.execute(
        "create table written (chunk_id integer not null references chunks on delete cascade,"
        " writer text not null, primary key (chunk_id, writer)) without rowid"
    )
    db.execute("alter table lessons add column writer text not null default ''")
    db.execute(
        "create table rehearsals (base_hash text not null, number integer not null, prompt text not null,"
        " said text not null, primary key (base_hash, number)) without rowid"
    )


def m006_vector_stores(db: Database) -> None:
    # collection: empty for what the person remembers, else the vector store that a source belongs to.
    # A file of a vector store that could not be read has no source, but a reason.
    db.execute("alter table sources add column collection text not null default ''")
    db.execute("create index sources_by_collection on sources (collection)")
    db.execute(
        "create table vector_stores (number integer primary key, id text not null unique, name text not null,"
        " metadata text not null, created_at integer not null, active_at integer not null)"
    )
    db.execute(
        "create table vector_store_files (number integer primary key, store_id text not null"
        " references vector_stores (id) on delete cascade, file_id text not null, source_id integer"
        " references sources on delete cascade, batch_id text not null, attributes text not null,"
        " created_at integer not null, problem text not null, unique (store_id, file_id))"
    )
    db.execute("create index vector_store_files_by_source on vector_store_files (source_id)")
    db.execute(
        "create table vector_store_batches (id text primary key, store_id text not null"
        " references vector_stores (id) on delete cascade, created_at integer not null) without rowid"
    )


def m007_exams(db: Database) -> None:
    # What was asked and said in a study's exam, by the run that made the adapter. It quotes the sources, so
    # all of it goes with the first of them that goes.
    db.execute(
        "create table exams (run text not null, source_id integer not null references sources"
        " on delete cascade, primary key (run, source_id)) without rowid"
    )
    db.execute("create index exams_by_source on exams (source_id)")
    db.execute(
        "create table exam_answers (run text not null, number integer not null, body text not null,"
        " primary key (run, number)) without rowid"
    )
    db.execute(
        "create trigger exam_source_deleted after delete on exams begin"
        " delete from exam_answers where run = old.run; end"
    )


def m008_jobs(db: Database) -> None:
    # What programs gave to keep, and what was made for them; the bytes lie in the home's files/.
    db.execute(
        "create table uploads (number integer primary key, id text not null unique, purpose text not null,"
        " filename text not null, suffix text not null, size_bytes integer not null,"
        " created_at integer not null, expires_at integer)"
    )
    # Times are seconds since 1970. wish: pause or cancel, until the worker has obeyed. owner: the process at
    # work on it. spec, metadata, progress, error and result are JSON. held: it waits while somebody chats.
    db.execute(
        "create table jobs (number integer primary key, id text not null unique, kind text not null,"
        " name text not null, model text not null, state text not null, stage text not null default '',"
        " spec text not null, metadata text, created_at integer not null, started_at integer,"
        " finished_at integer, progress text not null default '{}', error text,"
        " result text not null default '{}', wish text not null default '', owner text not null default '',"
        " attempts integer not null default 0, held integer not null default 0)"
    )
    db.execute(
        "create table job_events (job_id text not null references jobs(id) on delete cascade,"
        " number integer not null, at integer not null, level text not null, message text not null,"
        " data text, primary key (job_id, number)) without rowid"
    )
    db.execute(
        "create table job_steps (job_id text not null references jobs(id) on delete cascade,"
        " step integer not null, loss real, accuracy real, tokens integer, valid_loss real,"
        " valid_accuracy real, primary key (job_id, step)) without rowid"
    )


def m009_deleted_uploads(db: Database) -> None:
    # Who deletes a file means its text in every vector store too, also where its time is over.
    db.execute(
        "create trigger upload_deleted after delete on uploads begin"
        " delete from sources where id in (select source_id from vector_store_files where file_id = old.id);"
        " delete from vector_store_files where file_id = old.id;"
        " insert or replace into notes (key, value) values ('purge', 'due'); end"
    )


MIGRATIONS: list[Callable[[Database], None]] = [
    m001_sources_and_chunks,
    m002_full_text,
    m003_vectors,
    m004_studies,
    m005_study,
    m006_vector_stores,
    m007_exams,
    m008_jobs,
    m009_deleted_uploads,
]
