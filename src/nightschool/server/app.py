"""The server as one ASGI app: every area's routes, what they share, what begins and ends with it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from fastapi import FastAPI

from nightschool import __version__, uploads
from nightschool.errors import NightschoolError
from nightschool.server import (
    chats,
    completions,
    dialects,
    embeddings,
    files,
    fine_tuning,
    health,
    metrics,
    models,
    ollama,
    own,
    page,
    reference,
    tokens,
    vector_stores,
)
from nightschool.server.problems import LastResort, add_handlers
from nightschool.server.security import Gate, check_address
from nightschool.server.state import State
from nightschool.settings import ServeSettings
from nightschool.store import open_store

log = logging.getLogger("nightschool.server")


def create_app(settings: ServeSettings) -> FastAPI:
    """The app; its engines start with the first request that needs them.

    Raises NightschoolError for an address that others can reach without a key.
    """
    check_address(settings)
    app = FastAPI(
        title="Nightschool",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's own page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.nightschool = State(settings)
    app.state.metrics = metrics.new_registry(app.state.nightschool.engines)
    add_handlers(app)
    app.add_middleware(LastResort)
    app.add_middleware(metrics.Measured, registry=app.state.metrics)
    app.add_middleware(Gate, settings=settings)  # the last one added is the first one met
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(reference.router)
    app.include_router(models.router)
    app.include_router(chats.router)
    app.include_router(completions.router)
    app.include_router(dialects.router)
    app.include_router(embeddings.router)
    app.include_router(tokens.router)
    app.include_router(files.router)
    app.include_router(fine_tuning.router)
    app.include_router(vector_stores.router)
    app.include_router(ollama.router)
    app.include_router(own.router)
    app.include_router(page.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.nightschool
    await asyncio.to_thread(_sweep)
    state.supervisor.start()
    try:
        yield
    finally:
        await state.close()


def _sweep() -> None:
    """Remove what uploads to an earlier server left when it was killed; without it all else works."""
    try:
        with closing(open_store()) as db:
            uploads.sweep(db)
    except (NightschoolError, OSError):  # the store is held by another command, or the disk is full
        log.exception("what earlier uploads left cannot be removed; the next start tries again")
