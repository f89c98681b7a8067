"""What all requests share: the settings, the engines and whatever else lives as long as the server."""

import asyncio
import logging
from typing import Annotated

from fastapi import Depends, Request

from nightschool.errors import NightschoolError
from nightschool.server.engines import Engines
from nightschool.server.models import resolve
from nightschool.server.problems import ApiError
from nightschool.server.scores import Scores
from nightschool.server.searching import Searching
from nightschool.settings import ServeSettings
from nightschool.supervisor import Supervisor

log = logging.getLogger("nightschool.server")


class State:
    """One server's; at `app.state.nightschool`."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.engines = Engines(settings)
        self.searching = Searching(self.engines)
        self.scores = Scores(settings.threads)
        self.merging = asyncio.Semaphore(1)  # held while adapters are merged: it takes memory
        chatting = self.engines.chatting
        self.supervisor = Supervisor(
            is_chatting=lambda: chatting.is_active, threads=settings.threads, nice=settings.nice
        )
        chatting.listen(lambda _: self.supervisor.look_at_chats())
        self.closing = asyncio.Event()  # set when the server begins to end: answers under way end too
        self._warming: asyncio.Task[None] | None = None

    def warm_up(self) -> None:
        """Begin to load the default model, so that the first question need not wait for it."""
        self._warming = asyncio.create_task(self._load_default())

    async def _load_default(self) -> None:
        try:
            await self.engines.engine(resolve(self.settings.model))
        except (NightschoolError, ApiError) as error:
            log.warning("%s cannot be loaded: %s", self.settings.model, error)

    async def close(self) -> None:
        """End what lives as long as the server."""
        if self._warming is not None:
            await asyncio.wait([self._warming])
        await asyncio.to_thread(self.supervisor.close)  # a job saves what it has
        await self.scores.close()
        await self.searching.close()
        await self.engines.close()


async def state(request: Request) -> State:
    """The server's state, for a route: `here: Here`."""
    found = request.app.state.nightschool
    assert isinstance(found, State)
    return found


Here = Annotated[State, Depends(state)]
