"""Files that programs gave over the API, and those made for them: bytes in the home, a row in the store.

A file lies as files/<id><suffix>: nothing of its path is chosen by who sent it, but that a suffix which we
know how to read is kept. Examples to train on are checked while they come in, a line at a time; a file that
cannot be used is never kept.

A file gets its name within the transaction that writes its row: whoever holds the database sees both or, of
an upload that was killed, a file without a row, which `sweep` removes.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

from nightschool.datasets import check_lines
from nightschool.documents import is_readable
from nightschool.errors import DataError, FileFormatError, NotFound
from nightschool.jobs import new_id
from nightschool.paths import atomic_write, home
from nightschool.store import Database, Row, transaction

TRAINING, RESULTS = "fine-tune", "fine-tune-results"
MAX_BYTES = 512 << 20  # OpenAI's limit
MAX_NAME = 200
PIECE_BYTES = 1 << 20
WHOLE = re.compile(r"(file-[A-Za-z0-9]{24})(?:\.[a-z0-9]{1,8})?")
DRAFT = re.compile(rf"\.{WHOLE.pattern}\.(\d+)\.draft")  # of paths.atomic_write, with its process


@dataclass(frozen=True)
class Upload:
    """A file and what it is for; `filename` is what its sender called it, for people to read."""

    id: str
    purpose: str
    filename: str
    suffix: str
    size_bytes: int
    created_at: int
    expires_at: int | None

    @property
    def path(self) -> Path:
        """Where its bytes lie."""
        return files_dir() / f"{self.id}{self.suffix}"


def files_dir() -> Path:
    """Where all of them lie."""
    return home() / "files"


def save(
    db: Database, source: BinaryIO, *, filename: str, purpose: str, expires_after_s: int | None = None
) -> Upload:
    """Keep a file.

    Raises DataError where it is to be trained on and cannot be, by line; FileFormatError for one that is
    empty or too large.
    """
    id, shown, now = new_id("file"), clean_name(filename), int(time.time())
    suffix = kept_suffix(shown, purpose)
    expires_at = None if expires_after_s is None else now + expires_after_s
    files_dir().mkdir(mode=0o700, parents=True, exist_ok=True)  # they hold what the person wrote
    with ExitStack() as after:
        with atomic_write(files_dir() / f"{id}{suffix}") as draft:
            size_bytes = _copy(source, draft, shown)
            if purpose == TRAINING:
                with draft.open("rb") as file:
                    check_lines(file, shown)
            after.enter_context(transaction(db))  # committed when the file has its name
            db.execute(
                "insert into uploads (id, purpose, filename, suffix, size_bytes, created_at, expires_at)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                (id, purpose, shown, suffix, size_bytes, now, expires_at),
            )
    return Upload(id, purpose, shown, suffix, size_bytes, now, expires_at)


def _copy(source: BinaryIO, draft: Path, shown: str) -> int:
    size_bytes = 0
    with open(draft, "wb", opener=_private) as file:
        while piece := source.read(PIECE_BYTES):
            size_bytes += len(piece)
            if size_bytes > MAX_BYTES:
                raise FileFormatError(
                    f"{shown} is larger than {MAX_BYTES >> 20} MB, which is the most: send it in parts."
                )
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())  # now, and not while the row's transaction keeps others waiting
    if not size_bytes:
        raise FileFormatError(f"{shown} is empty.")
    return size_bytes


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def clean_name(filename: str) -> str:
    """The last part of a name, without what cannot be shown in a line."""
    last = re.split(r"[/\\]", filename)[-1]
    return re.sub(r"[\x00-\x1f\x7f]", "", last).strip()[:MAX_NAME] or "file"


def kept_suffix(filename: str, purpose: str) -> str:
    """The suffix to keep: that of examples, or one of a document that can be read; else none."""
    if purpose == TRAINING:
        return ".jsonl"
    suffix = Path(filename).suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) and is_readable(Path(f"x{suffix}")) else ""


def find(db: Database, id: str) -> Upload:
    """The file of that id. Raises NotFound."""
    _expire(db)
    row = db.execute("select * from uploads where id = ?", (id,)).fetchone()
    if row is None:
        raise NotFound(f"There is no file {id!r}.")
    return upload_of(row)


def list_uploads(db: Database, purpose: str | None = None) -> Iterator[Upload]:
    """All files, or those for a purpose, newest first."""
    _expire(db)
    where, values = ("where purpose = ?", [purpose]) if purpose else ("", [])
    rows = db.execute(f"select * from uploads {where} order by number desc", values).fetchall()
    return map(upload_of, rows)


def remove(db: Database, id: str) -> None:
    """Delete a file. Raises NotFound."""
    upload = find(db, id)
    with transaction(db):
        db.execute("delete from uploads where id = ?", (id,))
    upload.path.unlink(missing_ok=True)


def sweep(db: Database) -> int:
    """Remove what uploads that were killed left behind; how many files. One under way is left alone."""
    swept = 0
    with transaction(db):  # no upload is between its file's name and its row
        known = {row["id"] for row in db.execute("select id from uploads")}
        for path in files_dir().iterdir() if files_dir().is_dir() else ():
            whole, draft = WHOLE.fullmatch(path.name), DRAFT.fullmatch(path.name)
            if (whole and whole[1] not in known) or (draft and _is_left(path, int(draft[2]))):
                path.unlink(missing_ok=True)
                swept += 1
    return swept


def _is_left(draft: Path, process: int) -> bool:
    """Whether nobody writes it any longer; another process may have the number by now, as in a container."""
    try:
        return bool(psutil.Process(process).create_time() > draft.stat().st_mtime)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):  # it is done with this very moment
        return False


def _expire(db: Database) -> None:
    """Delete what its sender wanted kept no longer than until now."""
    rows = db.execute("select * from uploads where expires_at < ?", (int(time.time()),)).fetchall()
    for row in rows:
        with transaction(db):
            db.execute("delete from uploads where id = ?", (row["id"],))
        upload_of(row).path.unlink(missing_ok=True)


def upload_of(row: Row) -> Upload:
    return Upload(
        row["id"],
        row["purpose"],
        row["filename"],
        row["suffix"],
        row["size_bytes"],
        row["created_at"],
        row["expires_at"],
    )


def check_again(upload: Upload) -> None:
    """Raise DataError unless its lines can (still) be trained on."""
    try:
        with upload.path.open("rb") as file:
            check_lines(file, upload.filename)
    except OSError as error:
        raise DataError(f"The bytes of {upload.id} are gone: upload the file again.") from error
