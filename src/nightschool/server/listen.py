"""Listening: the app under uvicorn, until Ctrl-C or a signal ends it.

Answers under way are told that the server stops, so that it need not wait for them.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from nightschool.errors import NightschoolError
from nightschool.server.app import create_app
from nightschool.server.models import resolve
from nightschool.server.problems import ApiError
from nightschool.server.state import State
from nightschool.settings import ServeSettings

GRACE_S = 5  # for requests that are no answers
IDLE_S = 75  # longer than clients keep a connection, or one would end just as a request is sent over it

Ready = Callable[[str], None]


def serve(settings: ServeSettings, ready: Ready) -> None:
    """Serve until told to stop; `ready` gets the address once there is somebody to answer.

    Raises NightschoolError for an address that is taken or needs a key, or a model that is not here.
    """
    app = create_app(settings)
    try:
        resolve(settings.model)
    except ApiError as error:
        raise NightschoolError(error.message) from error
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that leave
    with listen(settings) as listening:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=IDLE_S,
        )
        _Server(config, app.state.nightschool, lambda: ready(_url(listening))).run(sockets=[listening])


class _Server(uvicorn.Server):
    """uvicorn's, which says when it has begun and tells the app when it is about to end."""

    def __init__(self, config: uvicorn.Config, state: State, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._state = state
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            self._state.warm_up()
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._state.closing.set)
        super().handle_exit(sig, frame)


def listen(settings: ServeSettings) -> socket.socket:
    """The listening socket. Raises NightschoolError where another has the port."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=512)
    except OSError as error:
        raise NightschoolError(
            f"Nobody can listen on {settings.host}, port {settings.port} ({error.strerror}): another server"
            " may run already. Choose another with --port, or 0 for any that is free."
        ) from error
    # Connections take this over; asyncio sets it for its own sockets only, and without it each answer's
    # second piece waits 40 ms for the client's delayed acknowledgement of the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
