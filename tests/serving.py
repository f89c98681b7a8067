"""A real server for tests: the app under uvicorn on a free port of 127.0.0.1, stopped when the block ends.

    with serving() as server:
        client = server.openai()
        httpx.get(server.url + "/health")

It reads NIGHTSCHOOL_HOME when it starts, as everything does.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI

from nightschool.server.app import create_app
from nightschool.server.state import State
from nightschool.settings import ServeSettings

START_LIMIT_S = 30.0


@dataclass(frozen=True)
class Serving:
    """A running server: its address, and the app for tests that look inside."""

    url: str
    app: FastAPI

    @property
    def state(self) -> State:
        return self.app.state.nightschool

    def openai(self, **options: Any) -> openai.OpenAI:
        """The real client; close it, or use it in a `with`."""
        options = {"api_key": "none", "max_retries": 0, "timeout": 60} | options
        return openai.OpenAI(base_url=self.url + "/v1", **options)


@contextmanager
def serving(settings: ServeSettings | None = None, **changes: Any) -> Iterator[Serving]:
    """Serve on a free port for the block; `changes` are fields of ServeSettings."""
    app = create_app(settings or ServeSettings(**changes))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        yield Serving(_address(server, thread), app)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not stop"


def _address(server: uvicorn.Server, thread: threading.Thread) -> str:
    end = time.monotonic() + START_LIMIT_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server does not start"
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    return f"http://{host}:{port}"


def wait_for(url: str) -> None:
    """Return when /health answers: for servers that a test started by command."""
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end:
        try:
            httpx.get(url + "/health", trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(f"no server at {url}")
