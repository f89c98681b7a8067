"""What is remembered: listed, added to, asked, forgotten."""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, cast

from fastapi import APIRouter, Path, Query, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from nightschool.answer import MAX_TOKENS, UNKNOWN, Answer, Memory, can_read, cited, closed_book, quote
from nightschool.documents import MAX_FILE_BYTES
from nightschool.errors import FileFormatError, NotFound
from nightschool.forget import forget
from nightschool.library import Source, list_sources, remember_bytes, remember_text, short_label
from nightschool.server.database import Store, purge_soon
from nightschool.server.models import Target, resolve
from nightschool.server.own import shapes
from nightschool.server.own.study import cancel_studies, queue_again, rebuilding
from nightschool.server.problems import ApiError, validation_error
from nightschool.server.state import Here, State
from nightschool.store import Database, open_store

MAX_FILES = 200  # of one request
MAX_NAME = 200
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": shapes.Note.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
        },
    }
}

SourceId = Annotated[int, Path(ge=0, le=2**53)]

router = APIRouter()


@router.get("/sources")
def sources(db: Store) -> shapes.Sources:
    """List everything that is remembered."""
    return shapes.Sources(sources=[shown(source) for source in list_sources(db)])


def shown(source: Source) -> shapes.Source:
    """A source without a word of where it lies."""
    return shapes.Source(
        id=source.id,
        label=short_label(source.label),
        title=source.title,
        kind=source.kind,  # type: ignore[arg-type]
        chunks=source.chunks,
        bytes=source.size_bytes,
        remembered_at=source.read_s,
        studied_by=list(source.studied),
        stale=source.stale,
    )


@router.get("/sources/{id}")
def source(id: SourceId, db: Store) -> shapes.SourceText:
    """Show what is known of a source."""
    found = find_source(db, id)
    rows = db.execute("select heading, text from chunks where source_id = ? order by position", (id,))
    passages = [shapes.Passage(heading=row["heading"], text=row["text"]) for row in rows]
    return shapes.SourceText(label=short_label(found.label), passages=passages)


def find_source(db: Database, id: int) -> Source:
    """The remembered source of an id. Raises NotFound."""
    found = next((source for source in list_sources(db) if source.id == id), None)
    if found is None:
        raise NotFound(f"There is no source {id}: it may have been forgotten meanwhile.")
    return found


# Remembering --------------------------------------------------------------------------------------


@router.post("/sources", openapi_extra=BODY)
async def remember(request: Request, here: Here) -> shapes.Remembered:
    """Remember files (multipart, a part for each) or a note (JSON)."""
    start_s = time.perf_counter()
    found = shapes.Remembered(remembered=[], failed=[], seconds=0.0)
    if request.headers.get("content-type", "").startswith("multipart/"):
        await _remember_files(request, found)
    else:
        note = _note(await request.body())
        keep = partial(remember_text, text=note.text, name=note.name or "")
        await asyncio.to_thread(_keep, found, note.name or "note", keep)
    await here.searching.make_vectors()
    found.seconds = round(time.perf_counter() - start_s, 4)
    return found


async def _remember_files(request: Request, found: shapes.Remembered) -> None:
    """The files of a form, one in memory at a time, under names that are no paths of this machine."""
    async with request.form(max_files=MAX_FILES, max_fields=MAX_FILES) as form:
        parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not parts:
            raise ApiError(400, "There is no file in this form.", param="files")
        for part in parts:
            name = clean_name(part.filename or "file")
            if (part.size or 0) > MAX_FILE_BYTES:
                reason = f"it has more than {MAX_FILE_BYTES >> 20} MB, which is the limit"
                found.failed.append(shapes.Failed(name=name, reason=reason))
                continue
            keep = partial(remember_bytes, data=await part.read(), name=name)
            await asyncio.to_thread(_keep, found, name, keep)


def clean_name(name: str) -> str:
    """A file's name with the folders it was sent with, and nothing that leads elsewhere."""
    parts = [re.sub(r"[\x00-\x1f\x7f:]", "", part).strip() for part in re.split(r"[/\\]", name)]
    return "/".join(part for part in parts if part not in ("", ".", ".."))[-MAX_NAME:] or "file"


def _note(body: bytes) -> shapes.Note:
    try:
        return shapes.Note.model_validate_json(body)
    except ValidationError as error:
        raise validation_error(error.errors()) from error


def _keep(found: shapes.Remembered, name: str, keep: Callable[[Database], Source]) -> None:
    """Remember one thing, or note why it cannot be."""
    with closing(open_store()) as db:
        try:
            found.remembered.append(shown(keep(db)))
        except FileFormatError as error:
            found.failed.append(shapes.Failed(name=name, reason=str(error)))
        purge_soon(db)


# Forgetting ---------------------------------------------------------------------------------------


@router.delete("/sources/{id}")
async def forget_source(
    id: SourceId,
    here: Here,
    rebuild: Annotated[bool, Query(description="Study anew what else the retired adapters knew")] = False,
) -> shapes.Forgotten:
    """Forget a source and all that was made of it; adapters that learned from it are retired at once."""
    found = await asyncio.to_thread(_forget, here, id, rebuild)
    return found


def _forget(here: State, id: int, rebuild: bool) -> shapes.Forgotten:
    with closing(open_store()) as db:
        source = find_source(db, id)
        stopped = cancel_studies(db, here, source)
        forgotten = forget(db, [source])
        purged = forgotten.purged or purge_soon(db)
        again = rebuilding(db, forgotten.due) if rebuild else []
        names = [wanted.name for wanted in again]
        queued = queue_again(db, here, [*again, *(each for each in stopped if each.name not in names)])
    return shapes.Forgotten(
        forgotten=short_label(source.label),
        chunks=forgotten.chunks,
        adapters_retired=list(forgotten.retired),
        adapters_rebuilding=names,
        jobs=[job.id for job in queued],
        traces_left=not purged,
    )


# Asking -------------------------------------------------------------------------------------------


@router.post("/ask")
async def ask(question: shapes.Question, here: Here) -> shapes.Answer:
    """Answer from what is remembered, with citations; or closed-book, from the weights alone."""
    target = resolve(question.model or here.settings.model)
    if question.closed_book:
        async with here.engines.using(target) as engine:
            answer = await asyncio.to_thread(closed_book, question.question, engine, stack=target.scales)
    elif can_read(target.base):
        answer = await _read_up(question.question, target, here)
    else:
        async with here.engines.using(target) as engine:
            answer = await here.searching.on(lambda index: quote(question.question, index, engine))
    found = answer.as_json()
    for citation in cast("list[dict[str, Any]]", found["citations"]):
        citation["source"] = short_label(citation["source"])
    return shapes.Answer.model_validate(found)


async def _read_up(question: str, target: Target, here: State) -> Answer:
    """What the model says to a question and the passages that were found for it."""
    start_s = time.perf_counter()
    async with here.engines.using(target) as engine:
        grounded = await here.searching.on(lambda index: Memory(index, engine).ground(question))
        if not grounded.citations:
            return Answer(UNKNOWN, known=False, seconds=time.perf_counter() - start_s)
        said = await asyncio.to_thread(
            engine.chat, grounded.messages, stack=target.scales, temperature=0.0, max_tokens=MAX_TOKENS
        )
    return replace(cited(said, grounded.citations), seconds=time.perf_counter() - start_s)
