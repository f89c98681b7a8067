"""What all requests share: the settings, the engines and whatever else lives as long as the server."""

import asyncio
from typing import Annotated, Any

from fastapi import Depends, Request

from nightschool.server.engines import Engines
from nightschool.server.searching import Searching
from nightschool.settings import ServeSettings


class State:
    """One server's; at `app.state.nightschool`."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.engines = Engines(settings)
        self.searching = Searching(self.engines)
        self.merging = asyncio.Semaphore(1)  # held while adapters are merged: it takes memory
        self.supervisor: Any = None  # runs jobs; set by the app where there is one


def state(request: Request) -> State:
    """The server's state, for a route: `here: Here`."""
    found = request.app.state.nightschool
    assert isinstance(found, State)
    return found


Here = Annotated[State, Depends(state)]
