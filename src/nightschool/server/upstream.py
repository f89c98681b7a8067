"""HTTP to llama.cpp, as little of it as that takes: a POST, its answer as it comes, connections kept.

A general client spends more on each token than all else that the server does with it (bench/bench_server.py);
the peer here is one program that we start ourselves. Framing: RFC 9112, a length or chunks.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CONNECT_S = 10.0
IDLE_S = 2.0  # llama.cpp ends idle connections after five
HEAD_BYTES = 1 << 16

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ConnectionBroken(Exception):
    """The other side ended before its answer was complete, or speaks no HTTP."""


@dataclass
class Reply:
    """The beginning of an answer; its body comes in `pieces`, or whole with `read`. Close it in any case."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    _connection: Connection
    _pool: "Upstream"
    _key: str
    _is_complete: bool = field(default=False)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises ConnectionBroken when it ends too early."""
        reader, _ = self._connection
        try:
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int(await reader.readline(), 16):
                    yield (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            else:
                yield await reader.readexactly(int(self.headers.get("content-length", "0")))
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise ConnectionBroken("the answer broke off") from error
        self._is_complete = True

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.pieces()])

    def close(self) -> None:
        """Keep the connection for the next request, or, when there is more to come, cut it off.

        llama.cpp ends those that it has sent events over.
        """
        has_length = "content-length" in self.headers
        if self._is_complete and has_length and self.headers.get("connection", "").lower() != "close":
            self._pool.keep(self._key, self._connection)
        else:
            self._connection[1].transport.abort()


class Upstream:
    """The connections that are open and idle, by the address they lead to."""

    def __init__(self) -> None:
        self._idle: dict[str, list[tuple[Connection, float]]] = {}

    async def post(self, address: str, path: str, content: bytes, headers: Mapping[str, str]) -> Reply:
        """Send JSON and return when the answer begins. Raises ConnectionBroken."""
        url = urlsplit(address)
        lines = [f"POST {url.path.rstrip('/')}{path} HTTP/1.1", f"Host: {url.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}", "", ""]
        connection = self._kept(address) or await _connect(url.scheme, url.hostname or "", url.port)
        reader, writer = connection
        try:
            writer.write("\r\n".join(lines).encode() + content)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status, found = _parsed(head)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            writer.transport.abort()
            raise ConnectionBroken("no answer came") from error
        except BaseException:  # cancelled: the answer would belong to nobody
            writer.transport.abort()
            raise
        return Reply(status, found, connection, self, address)

    def _kept(self, address: str) -> Connection | None:
        """A connection that the other side has not ended."""
        idle = self._idle.get(address, [])
        while idle:
            connection, since = idle.pop()
            reader, writer = connection
            if time.monotonic() - since < IDLE_S and not reader.at_eof() and not writer.is_closing():
                return connection
            writer.transport.abort()
        self._idle.pop(address, None)
        return None

    def keep(self, address: str, connection: Connection) -> None:
        """Take back a connection whose last answer is complete."""
        self._idle.setdefault(address, []).append((connection, time.monotonic()))

    def close(self) -> None:
        """End every idle connection."""
        for idle in self._idle.values():
            for (_, writer), _ in idle:
                writer.transport.abort()
        self._idle.clear()


async def _connect(scheme: str, host: str, port: int | None) -> Connection:
    is_secure = scheme == "https"
    try:
        async with asyncio.timeout(CONNECT_S):
            return await asyncio.open_connection(
                host,
                port or (443 if is_secure else 80),
                ssl=ssl.create_default_context() if is_secure else None,
                limit=HEAD_BYTES,
            )
    except (OSError, TimeoutError) as error:
        raise ConnectionBroken("nobody answers") from error


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers; ValueError for what is no answer."""
    first, *lines = head.decode("latin-1").split("\r\n")
    _, status, *_ = first.split(" ", 2)
    found = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip().lower()] = value.strip()
    return int(status), found
