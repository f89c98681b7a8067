"""Search for whatever the server answers: one connection, one embedding engine, vectors kept in memory.

Searches wait for each other: each takes milliseconds, and the vectors of an index are too large to hold
twice.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from nightschool.errors import NightschoolError, NotFound
from nightschool.hub import Base, find_base
from nightschool.index import Index
from nightschool.library import MEMORY
from nightschool.server.engines import Engines
from nightschool.server.models import Target
from nightschool.store import Database, get_note, open_store
from nightschool.vectors import AUTO, NOTE, OFF, EngineEmbedder, choose_embedder, embed_missing

log = logging.getLogger("nightschool.server")

MAX_INDEXES = 8  # collections whose vectors are held at once

Result = TypeVar("Result")


class Searching:
    """The indexes of a server, one for each collection that is searched."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._db: Database | None = None
        self._indexes: dict[str, Index] = {}
        self._turn = threading.Lock()
        self._making: asyncio.Task[None] | None = None
        self._wanted = False
        self._closed = threading.Event()

    async def on(self, work: Callable[[Index], Result], *, collection: str = MEMORY) -> Result:
        """Do something with the index of a collection, in a thread; the only place that touches it."""
        embedder = await self.embedder()

        def alone() -> Result:
            with self._turn:
                index = self._index(collection)
                index.embedder = embedder
                return work(index)

        return await asyncio.to_thread(alone)

    def _index(self, collection: str) -> Index:
        if self._db is None:
            self._db = open_store()
        if collection not in self._indexes and len(self._indexes) >= MAX_INDEXES:
            self._indexes.pop(next(iter(self._indexes)))
        return self._indexes.setdefault(collection, Index(self._db, collection=collection))

    async def embedder(self) -> EngineEmbedder | None:
        """The embedding model that the person has settled on, its engine running; None without one."""
        base = await asyncio.to_thread(settled)
        if base is None:
            return None
        return EngineEmbedder(base, await self._engines.engine(Target(base.name, base), embedding=True))

    async def make_vectors(self) -> None:
        """Begin to give every chunk its vector, where an embedding model is here; search works meanwhile."""
        self._wanted = True
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make_vectors())

    async def _make_vectors(self) -> None:
        while self._wanted and not self._closed.is_set():  # more may come while some are made
            self._wanted = False
            try:
                await asyncio.to_thread(choose)
                embedder = await self.embedder()
                if embedder is not None:
                    await asyncio.to_thread(self._embed_missing, embedder)
            except NightschoolError as error:  # what has no vector is found by its words
                log.warning("vectors could not be made: %s", error)

    def _embed_missing(self, embedder: EngineEmbedder) -> None:
        with closing(open_store()) as db:
            for _ in embed_missing(db, embedder):
                if self._closed.is_set():
                    return

    async def close(self) -> None:
        """Stop making vectors, and let the database go."""
        self._closed.set()
        if self._making is not None:
            await asyncio.wait([self._making])
        with self._turn:
            if self._db is not None:
                self._db.close()
            self._db = None
            self._indexes.clear()


def choose() -> None:
    """Settle on an embedding model where one is here and nothing else was said."""
    with closing(open_store()) as db:
        choose_embedder(db)


def settled() -> Base | None:
    """The base that makes vectors, if one was settled on and is still here."""
    with closing(open_store()) as db:
        name = get_note(db, NOTE)
    if name is None or name in (OFF, AUTO):
        return None
    try:
        return find_base(name)
    except NotFound:  # removed since: search goes by words
        return None
