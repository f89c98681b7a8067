"""/v1/vector_stores: files put together to be searched; OpenAI's API over the one memory (vector_stores).

Files are read, cut and indexed while the request waits, so a store is never in progress. Not offered, and
refused by name: expiry (what is kept here stays until it is deleted), other ways of cutting, query rewriting.
A result's score is the share of the question's words, by weight, that its passage has; with an embedding
model, how near the top of the rankings it came.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from nightschool import uploads, vector_stores
from nightschool.index import RRF_K, Hit, Index
from nightschool.library import short_label
from nightschool.server.database import Store, purge_soon
from nightschool.server.pagination import Page
from nightschool.server.problems import ApiError
from nightschool.server.state import Here
from nightschool.store import Database, open_store
from nightschool.vector_stores import StoredFile, VectorStore

MAX_BATCH = 500
MAX_QUERIES = 16

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])

Key = Annotated[str, Field(max_length=64)]
Text = Annotated[str, Field(max_length=512)]
Value = bool | Annotated[float, Field(allow_inf_nan=False)] | Text
Metadata = Annotated[dict[Key, Text], Field(max_length=16)]
Attributes = Annotated[dict[Key, Value], Field(max_length=16)]
Id = Annotated[str, Path(max_length=100)]
FileId = Annotated[str, Field(max_length=100)]


# What is asked ------------------------------------------------------------------------------------


class Asked(BaseModel):
    """A request: fields that are not named are refused."""

    model_config = ConfigDict(extra="forbid")


class Chunking(BaseModel):
    """How files are cut: at headings and paragraphs, and only so."""

    type: Annotated[str, Field(max_length=64)]


class NewStore(Asked):
    """A store, with files in it from the start."""

    name: Annotated[str, Field(max_length=256)] | None = None
    description: Text | None = None
    file_ids: Annotated[list[FileId], Field(max_length=MAX_BATCH)] = []
    metadata: Metadata | None = None
    chunking_strategy: Chunking | None = None
    expires_after: dict[str, Any] | None = Field(None, description="Refused")


class StoreChange(Asked):
    """What a store is to be called from now on."""

    name: Annotated[str, Field(max_length=256)] | None = None
    metadata: Metadata | None = None
    expires_after: dict[str, Any] | None = Field(None, description="Refused")


class NewFile(Asked):
    """An uploaded file to put into a store."""

    file_id: FileId
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class FileChange(Asked):
    """A file's attributes from now on."""

    attributes: Attributes | None


class NewBatch(Asked):
    """Several uploaded files: their ids, or each with its own attributes."""

    file_ids: Annotated[list[FileId], Field(max_length=MAX_BATCH)] | None = None
    files: Annotated[list[NewFile], Field(max_length=MAX_BATCH)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class Comparison(Asked):
    """An attribute compared with a value, or with several for `in` and `nin`."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte"]
    key: Key
    value: Value


class Membership(Asked):
    """An attribute that is one of some values, or none of them."""

    type: Literal["in", "nin"]
    key: Key
    value: Annotated[list[Value], Field(max_length=100)]


class Compound(Asked):
    """Filters that must all pass, or one of which must."""

    type: Literal["and", "or"]
    filters: Annotated[list["Comparison | Membership | Compound"], Field(max_length=20)]


class Ranking(Asked):
    """How results are ranked: there is one way, and a score below which they are left out."""

    ranker: Literal["none", "auto", "default-2024-11-15"] = "auto"
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0


Question = Annotated[str, Field(min_length=1, max_length=4000)]


class Search(Asked):
    """What to look for in a store."""

    query: Question | Annotated[list[Question], Field(min_length=1, max_length=MAX_QUERIES)]
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10
    filters: Comparison | Membership | Compound | None = None
    ranking_options: Ranking = Ranking()
    rewrite_query: bool = Field(False, description="Refused where true")


REFUSED = {
    "chunking_strategy": "Files are cut at headings and paragraphs here: leave `chunking_strategy` away.",
    "expires_after": "What is kept here stays until it is deleted: leave `expires_after` away.",
    "rewrite_query": "Questions are searched for as they are: leave `rewrite_query` away.",
}


def refuse_what_is_not_offered(asked: Asked) -> None:
    """Raise ApiError for a field that asks for what is not done here."""
    for name, why in REFUSED.items():
        value = getattr(asked, name, None)
        if value and not (isinstance(value, Chunking) and value.type == "auto"):
            raise ApiError(400, why, param=name, code="unsupported_parameter")


# What is answered ---------------------------------------------------------------------------------


class Counts(BaseModel):
    in_progress: int = 0
    completed: int
    failed: int
    cancelled: int = 0
    total: int


class VectorStoreObject(BaseModel):
    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    usage_bytes: int
    file_counts: Counts
    status: Literal["completed"] = "completed"
    expires_after: None = None
    expires_at: None = None
    last_active_at: int
    metadata: dict[str, str]


class LastError(BaseModel):
    code: Literal["invalid_file"] = "invalid_file"
    message: str


class Strategy(BaseModel):
    type: Literal["other"] = "other"


class FileObject(BaseModel):
    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    created_at: int
    vector_store_id: str
    usage_bytes: int
    status: Literal["completed", "failed"]
    last_error: LastError | None
    attributes: dict[str, str | float | bool]
    chunking_strategy: Strategy = Strategy()


class BatchObject(BaseModel):
    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    vector_store_id: str
    status: Literal["completed"] = "completed"
    file_counts: Counts


class Deleted(BaseModel):
    id: str
    object: Literal["vector_store.deleted", "vector_store.file.deleted"]
    deleted: Literal[True] = True


class Content(BaseModel):
    type: Literal["text"] = "text"
    text: str


class ContentPage(BaseModel):
    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[Content]
    has_more: Literal[False] = False
    next_page: None = None


class Result(BaseModel):
    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | float | bool]
    content: list[Content]


class ResultPage(BaseModel):
    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[Result]
    has_more: Literal[False] = False
    next_page: None = None


class StorePage(Page[VectorStoreObject]):
    pass


class FilePage(Page[FileObject]):
    pass


class PageWanted(BaseModel):
    """Which part of a list is wanted."""

    model_config = ConfigDict(extra="ignore")
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Annotated[str, Field(max_length=100)] | None = None
    before: Annotated[str, Field(max_length=100)] | None = None


class FilesWanted(PageWanted):
    """And in which state."""

    filter: Literal["in_progress", "completed", "failed", "cancelled"] | None = None


def page_of(objects: Sequence[Any], page: PageWanted) -> tuple[list[Any], bool]:
    """The part of a list (in ascending order) that a page asks for, and whether there is more.

    Raises ApiError where `after` or `before` names nothing in the list.
    """
    ordered = list(objects) if page.order == "asc" else list(objects)[::-1]
    ids = [each.id for each in ordered]
    for name, id in (("after", page.after), ("before", page.before)):
        if id is not None and id not in ids:
            raise ApiError(400, f"There is no {id!r} in this list.", param=name)
    start = ids.index(page.after) + 1 if page.after is not None else 0
    stop = ids.index(page.before) if page.before is not None else len(ids)
    within = ordered[start:stop]
    if page.before is not None and page.after is None:  # those just before it
        return within[-page.limit :], len(within) > page.limit
    return within[: page.limit], len(within) > page.limit


# Stores -------------------------------------------------------------------------------------------


@router.post("")
def create_store(asked: NewStore, db: Store) -> VectorStoreObject:
    """Create a store, with files in it where some are named."""
    refuse_what_is_not_offered(asked)
    found = [uploads.find(db, id) for id in dict.fromkeys(asked.file_ids)]
    store = vector_stores.create(db, name=asked.name or "", metadata=asked.metadata or {})
    for upload in found:
        vector_stores.attach(db, store, upload, attributes={})
    return shown(vector_stores.find(db, store.id))


def shown(store: VectorStore) -> VectorStoreObject:
    """A store in OpenAI's JSON."""
    return VectorStoreObject(
        id=store.id,
        created_at=store.created_at,
        name=store.name,
        usage_bytes=store.usage_bytes,
        file_counts=Counts(
            completed=store.completed, failed=store.failed, total=store.completed + store.failed
        ),
        last_active_at=store.active_at,
        metadata=store.metadata,
    )


@router.get("")
def list_stores(page: Annotated[PageWanted, Query()], db: Store) -> StorePage:
    """List the stores; what is remembered is one of them, `vs_memory`."""
    data, has_more = page_of([shown(store) for store in vector_stores.list_stores(db)], page)
    return StorePage.of(data, has_more=has_more)


@router.get("/{id}")
def retrieve_store(id: Id, db: Store) -> VectorStoreObject:
    """Show a store."""
    return shown(vector_stores.find(db, id))


@router.post("/{id}")
def modify_store(id: Id, asked: StoreChange, db: Store) -> VectorStoreObject:
    """Give a store another name or other metadata."""
    refuse_what_is_not_offered(asked)
    store = changeable(db, id)
    return shown(vector_stores.change(db, store, name=asked.name, metadata=asked.metadata))


def changeable(db: Database, id: str) -> VectorStore:
    """A store that may be changed here. Raises NotFound, and ApiError for what is remembered."""
    store = vector_stores.find(db, id)
    if store.is_memory:
        raise ApiError(
            400,
            "What is remembered can be searched here, and changed with /v1/nightschool/sources or the "
            "`remember` and `forget` commands.",
            code="read_only",
        )
    return store


@router.delete("/{id}")
def delete_store(id: Id, db: Store) -> Deleted:
    """Delete a store and all traces of what is in it; the uploaded files stay."""
    vector_stores.remove(db, changeable(db, id))
    purge_soon(db)
    return Deleted(id=id, object="vector_store.deleted")


# Files --------------------------------------------------------------------------------------------


@router.post("/{id}/files")
async def attach_file(id: Id, asked: NewFile, here: Here) -> FileObject:
    """Put an uploaded file into a store: it can be searched at once."""
    attached = await asyncio.to_thread(_attach, id, [asked])
    await here.searching.make_vectors()
    return shown_file(attached[0])


def _attach(id: str, asked: Sequence[NewFile], *, as_batch: bool = False) -> list[StoredFile]:
    """Put files into a store; nothing where one of them was not uploaded."""
    for each in asked:
        refuse_what_is_not_offered(each)
    with closing(open_store()) as db:
        store = changeable(db, id)
        found = [(uploads.find(db, each.file_id), each.attributes or {}) for each in asked]
        batch_id = vector_stores.begin_batch(db, store) if as_batch else ""
        attached = [
            vector_stores.attach(db, store, upload, attributes=attributes, batch_id=batch_id)
            for upload, attributes in found
        ]
        purge_soon(db)
        return attached


def shown_file(file: StoredFile) -> FileObject:
    """A file of a store in OpenAI's JSON."""
    return FileObject(
        id=file.id,
        created_at=file.created_at,
        vector_store_id=file.store_id,
        usage_bytes=file.usage_bytes,
        status="failed" if file.problem else "completed",
        last_error=LastError(message=f"The file cannot be read: {file.problem}.") if file.problem else None,
        attributes=file.attributes,
    )


@router.get("/{id}/files")
def list_files(id: Id, page: Annotated[FilesWanted, Query()], db: Store) -> FilePage:
    """List the files of a store."""
    return _files(vector_stores.list_files(db, vector_stores.find(db, id)), page)


def _files(files: Sequence[StoredFile], page: FilesWanted) -> FilePage:
    every = [shown_file(file) for file in files]
    wanted = [file for file in every if page.filter in (None, file.status)]
    data, has_more = page_of(wanted, page)
    return FilePage.of(data, has_more=has_more)


@router.get("/{id}/files/{file_id}")
def retrieve_file(id: Id, file_id: Id, db: Store) -> FileObject:
    """Show a file of a store."""
    return shown_file(vector_stores.find_file(db, vector_stores.find(db, id), file_id))


@router.post("/{id}/files/{file_id}")
def modify_file(id: Id, file_id: Id, asked: FileChange, db: Store) -> FileObject:
    """Give a file of a store other attributes."""
    store = changeable(db, id)
    file = vector_stores.find_file(db, store, file_id)
    vector_stores.describe(db, file, asked.attributes or {})
    return shown_file(vector_stores.find_file(db, store, file_id))


@router.get("/{id}/files/{file_id}/content")
def file_content(id: Id, file_id: Id, db: Store) -> ContentPage:
    """Show the text of a file as it is searched."""
    file = vector_stores.find_file(db, vector_stores.find(db, id), file_id)
    return ContentPage(data=[Content(text=text) for text in vector_stores.passages(db, file)])


@router.delete("/{id}/files/{file_id}")
def delete_file(id: Id, file_id: Id, db: Store) -> Deleted:
    """Take a file out of a store, and all traces of its text; the uploaded file stays."""
    vector_stores.detach(db, vector_stores.find_file(db, changeable(db, id), file_id))
    purge_soon(db)
    return Deleted(id=file_id, object="vector_store.file.deleted")


# Batches ------------------------------------------------------------------------------------------


@router.post("/{id}/file_batches")
async def create_batch(id: Id, asked: NewBatch, here: Here) -> BatchObject:
    """Put several uploaded files into a store."""
    refuse_what_is_not_offered(asked)
    if (asked.file_ids is None) == (asked.files is None):
        raise ApiError(400, "Give `file_ids` or `files`: one of the two.", param="file_ids")
    files = asked.files or [
        NewFile(file_id=file_id, attributes=asked.attributes) for file_id in asked.file_ids or []
    ]
    if not files:
        raise ApiError(400, "There is no file in this batch.", param="file_ids")
    by_id = {file.file_id: file for file in files}
    attached = await asyncio.to_thread(_attach, id, list(by_id.values()), as_batch=True)
    await here.searching.make_vectors()
    return _shown_batch(id, attached[0].batch_id, attached[0].created_at, attached)


def _shown_batch(id: str, batch_id: str, created_at: int, files: Sequence[StoredFile]) -> BatchObject:
    failed = sum(bool(file.problem) for file in files)
    counts = Counts(completed=len(files) - failed, failed=failed, total=len(files))
    return BatchObject(id=batch_id, created_at=created_at, vector_store_id=id, file_counts=counts)


@router.get("/{id}/file_batches/{batch_id}")
def retrieve_batch(id: Id, batch_id: Id, db: Store) -> BatchObject:
    """Show a batch."""
    store = changeable(db, id)
    created_at = vector_stores.batch_time(db, store, batch_id)
    return _shown_batch(id, batch_id, created_at, vector_stores.list_files(db, store, batch_id=batch_id))


@router.post("/{id}/file_batches/{batch_id}/cancel")
def cancel_batch(id: Id, batch_id: Id, db: Store) -> BatchObject:
    """Show a batch: by the time it can be cancelled it is done."""
    return retrieve_batch(id, batch_id, db)


@router.get("/{id}/file_batches/{batch_id}/files")
def list_batch_files(id: Id, batch_id: Id, page: Annotated[FilesWanted, Query()], db: Store) -> FilePage:
    """List the files of a batch."""
    store = changeable(db, id)
    vector_stores.batch_time(db, store, batch_id)
    return _files(vector_stores.list_files(db, store, batch_id=batch_id), page)


# Search -------------------------------------------------------------------------------------------


@router.post("/{id}/search")
async def search(id: Id, asked: Search, here: Here) -> ResultPage:
    """Find the passages of a store that fit a question best."""
    refuse_what_is_not_offered(asked)
    filter = asked.filters.model_dump() if asked.filters else None
    store, files = await asyncio.to_thread(_searchable, id, filter)
    queries = [asked.query] if isinstance(asked.query, str) else asked.query
    find = _finder(queries, None if store.is_memory and filter is None else list(files))
    scored = await here.searching.on(find, collection=store.collection)
    best = sorted(scored.values(), key=lambda pair: -pair[1])
    kept = [pair for pair in best if pair[1] >= asked.ranking_options.score_threshold]
    data = [_result(hit, score, files) for hit, score in kept[: asked.max_num_results]]
    return ResultPage(search_query=queries, data=data)


def _searchable(id: str, filter: dict[str, Any] | None) -> tuple[VectorStore, dict[int, StoredFile]]:
    with closing(open_store()) as db:
        store = vector_stores.find(db, id)
        vector_stores.note_activity(db, store)
        return store, vector_stores.sources_of(vector_stores.list_files(db, store), filter)


Scored = dict[int, tuple[Hit, float]]  # by chunk


def _finder(queries: Sequence[str], sources: list[int] | None) -> Callable[[Index], Scored]:
    """What looks for all queries; a chunk that several find has its best score."""

    def find(index: Index) -> Scored:
        found: Scored = {}
        rankings = 2 if index.embedder else 1
        for query in queries:
            for hit in index.search(query, limit=50, sources=sources):
                score = hit.score * (RRF_K + 1) / rankings if index.embedder else hit.coverage
                if hit.chunk_id not in found or found[hit.chunk_id][1] < score:
                    found[hit.chunk_id] = hit, min(1.0, round(score, 6))
        return found

    return find


def _result(hit: Hit, score: float, files: dict[int, StoredFile]) -> Result:
    file = files[hit.source_id]
    return Result(
        file_id=file.id,
        filename=short_label(file.filename),
        score=score,
        attributes=file.attributes,
        content=[Content(text=hit.text)],
    )
