"""Answers that take their time: whole or as server-sent events, ended when the client goes away.

`relay` hands on llama.cpp's own answer, event by event and nearly byte by byte; only the model's name, which
for llama.cpp is a path, becomes the one that the client used, unless `rewriting` does more. `Answer` is for
answers that are made here.

A failure before the first byte is an error with its status; one after it is an event {"error": …}, which
clients raise as they do the former, and there is no [DONE].
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from nightschool.errors import NightschoolError
from nightschool.server.engines import Engines, answer_of, broken
from nightschool.server.models import Target
from nightschool.server.problems import ApiError, as_api_error, error_body, error_response
from nightschool.server.upstream import ConnectionBroken, Reply

log = logging.getLogger("nightschool.server")

DONE = b"data: [DONE]\n\n"
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy in between should not gather events
]
# In JSON text a quote inside a string is escaped: what matches is a key and never what somebody said.
MODEL = re.compile(rb'"model":"(?:[^"\\]|\\.)*"')


class Out:
    """Where an answer is written to: one JSON object, or events."""

    headers = EVENT_HEADERS

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._asgi = scope, receive, send
        self._send = send
        self.has_begun = False

    async def json(self, body: Mapping[str, Any]) -> None:
        """The whole answer."""
        await self.respond(JSONResponse(body))

    async def respond(self, response: Response) -> None:
        self.has_begun = True
        await response(*self._asgi)

    async def write(self, piece: bytes) -> None:
        """Bytes of an event stream, which begins with the first of them."""
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def event(self, body: Mapping[str, Any]) -> None:
        """One event."""
        await self.write(event(body))

    async def end(self) -> None:
        """The end of an event stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """Say what went wrong, in the form that is still possible."""
        param, code = error.param, error.code
        if self.has_begun:
            await self.event(error_body(error.status, error.message, param=param, code=code))
            await self.end()
        else:
            await self.respond(error_response(error.status, error.message, param=param, code=code))


Work = Callable[[Out], Awaitable[None]]


class Answer(Response):
    """A response that `work` writes; when the client goes away first, `work` is cancelled.

    `out` says in which form.
    """

    def __init__(self, work: Work, out: type[Out] = Out) -> None:
        super().__init__()
        self._work, self._out = work, out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = self._out(scope, receive, send)
        working = asyncio.ensure_future(self._run(out))
        leaving = asyncio.ensure_future(_client_has_gone(receive))
        closing = asyncio.ensure_future(scope["app"].state.nightschool.closing.wait())
        tasks = (working, leaving, closing)
        done: set[asyncio.Future[Any]] = set()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if done == {closing}:
            await out.fail(ApiError(503, "The server is stopping.", code="server_stopping"))
        if not working.cancelled() and (error := working.exception()):
            raise error

    async def _run(self, out: Out) -> None:
        try:
            await self._work(out)
        except ApiError as error:
            await out.fail(error)
        except NightschoolError as error:
            await out.fail(as_api_error(error))
        except Exception as error:
            if not out.has_begun:
                raise  # to the handler that all routes share
            log.error("an answer failed half-way", exc_info=error)
            await out.fail(ApiError(500, "Something went wrong here; the server's log says what."))


async def _client_has_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(body: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


# llama.cpp's own answers --------------------------------------------------------------------------


class Rewriting(Protocol):
    """Changes an answer on its way: the whole of it, or pieces of its stream, cut between events."""

    def whole(self, content: bytes) -> bytes: ...
    def events(self, piece: bytes) -> bytes: ...


class Renaming:
    """The model's name becomes the one that the client used."""

    def __init__(self, name: str) -> None:
        self._name = b'"model":' + json.dumps(name).encode().replace(b"\\", b"\\\\")

    def whole(self, content: bytes) -> bytes:
        return MODEL.sub(self._name, content)

    events = whole


def relay(
    engines: Engines,
    target: Target,
    path: str,
    body: Mapping[str, Any],
    *,
    rewriting: Rewriting | None = None,
) -> Answer:
    """llama.cpp's answer to `body`, under the name that the client used."""
    rewriting = rewriting or Renaming(target.name)

    async def work(out: Out) -> None:
        for last_try in (False, True):
            async with engines.lease(target) as lease:
                try:
                    await _hand_on(out, await lease.post(path, body, target.scales), rewriting)
                    return
                except ConnectionBroken as error:
                    await engines.has_broken(lease)
                    if last_try or out.has_begun:
                        raise broken(lease.process) from error

    return Answer(work)


async def _hand_on(out: Out, reply: Reply, rewriting: Rewriting) -> None:
    try:
        if reply.headers.get("content-type", "").startswith("text/event-stream"):
            async for piece in whole_events(reply.pieces()):
                await out.write(rewriting.events(piece))
            await out.end()
        else:
            content = await reply.read()
            answer_of(reply.status, content)
            await out.respond(_json(rewriting.whole(content)))
    finally:
        reply.close()


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


async def whole_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, cut between events: what has come is never held back for longer than that."""
    rest = b""
    async for piece in pieces:
        rest += piece
        cut = rest.rfind(b"\n\n") + 2
        if cut > 1:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest
