"""/v1/files: what programs upload to train on or to search in, and the results made for them.

Examples to train on are read line by line while they come in; a file with a line that cannot be used is
refused, and the error says which line and why. Documents are kept as they are.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from nightschool import jobs, uploads
from nightschool.errors import DataError, FileFormatError, NotFound
from nightschool.server.database import Store, purge_soon
from nightschool.server.pagination import Page, page_after
from nightschool.server.problems import ApiError
from nightschool.store import Database
from nightschool.uploads import Upload

PURPOSES = (uploads.TRAINING, "assistants", "user_data")
FIELDS = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}
HOUR_S, MONTH_S = 3600, 30 * 24 * 3600

router = APIRouter(prefix="/v1/files", tags=["files"])


class FileObject(BaseModel):
    """A file, as OpenAI describes one."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class Files(Page[FileObject]):
    """A page of files."""


class Deleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


@router.post("")
async def upload_file(
    request: Request,
    db: Store,
    *,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[str, Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=HOUR_S, le=MONTH_S)] = None,
) -> FileObject:
    """Upload a file: `fine-tune` for examples to train on, `assistants` or `user_data` for documents."""
    unknown = sorted(set(await request.form()) - FIELDS)
    if unknown:
        raise ApiError(400, f"Unknown parameter: {unknown[0]!r}.", param=unknown[0], code="unknown_parameter")
    check_purpose(purpose)
    try:
        upload = await run_in_threadpool(
            uploads.save,
            db,
            file.file,
            filename=file.filename or "file",
            purpose=purpose,
            expires_after_s=seconds,
        )
    except (DataError, FileFormatError) as error:
        raise ApiError(400, str(error), param="file", code="invalid_file") from error
    return shown(upload)


def check_purpose(purpose: str) -> None:
    """Raise unless files are taken for this purpose."""
    if purpose in PURPOSES:
        return
    known = ", ".join(PURPOSES)
    raise ApiError(
        400,
        f"Files for the purpose {purpose[:40]!r} are not taken here: it must be one of {known}.",
        param="purpose",
        code="invalid_value",
    )


@router.get("")
def list_files(
    db: Store,
    purpose: str | None = None,
    *,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> Files:
    """List files, newest first unless asked otherwise."""
    every = list(uploads.list_uploads(db, purpose))
    page, has_more = page_after(after, every if order == "desc" else every[::-1], limit=limit)
    return Files.of([shown(upload) for upload in page], has_more=has_more)


@router.get("/{id}")
def retrieve_file(db: Store, id: str) -> FileObject:
    """Describe a file."""
    return shown(found(db, id))


@router.get("/{id}/content", response_class=FileResponse)
def file_content(db: Store, id: str) -> FileResponse:
    """The bytes of a file; result files of fine-tuning are CSV."""
    upload = found(db, id)
    if not upload.path.is_file():
        raise ApiError(404, f"The bytes of {id!r} are gone: upload the file again.", param="id")
    return FileResponse(upload.path, media_type="application/octet-stream", filename=upload.filename)


@router.delete("/{id}")
def delete_file(db: Store, id: str) -> Deleted:
    """Delete a file; one that a job is still to read is kept until the job has ended."""
    found(db, id)
    for job in jobs.list_jobs(db, jobs.FINE_TUNING):
        files = (job.spec.get("training_file"), job.spec.get("validation_file"))
        if id in files and not job.is_finished:
            raise ApiError(
                409, f"The job {job.id!r} needs this file: cancel it first.", param="id", code="file_in_use"
            )
    uploads.remove(db, id)
    purge_soon(db)  # its text goes from vector stores too
    return Deleted(id=id)


def found(db: Database, id: str, *, param: str = "id") -> Upload:
    """The file of that id. Raises ApiError 404 as OpenAI words it."""
    try:
        return uploads.find(db, id)
    except NotFound as error:
        raise ApiError(404, f"No such File object: {id[:80]}", param=param, code="not_found") from error


def shown(upload: Upload) -> FileObject:
    """A file without a word of where it lies."""
    return FileObject(
        id=upload.id,
        bytes=upload.size_bytes,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
        filename=upload.filename,
        purpose=upload.purpose,
    )
