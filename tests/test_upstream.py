"""The little HTTP that llama.cpp is spoken to with, against a peer that says exactly what a test wants."""

import asyncio
from collections.abc import Sequence

import pytest

from nightschool.server.upstream import ConnectionBroken, Upstream

OK = b"HTTP/1.1 200 OK\r\n"
KEPT = b"Content-Length: 5"  # an answer after which the peer listens on
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def ask(said: Sequence[bytes], *, times: int = 1) -> tuple[list[bytes], int]:
    """The bodies of answers that come in these pieces, and how many connections they took."""
    peers: set[asyncio.Task[None]] = set()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"X-Key: k\r\n" in head and b"Content-Length: 2\r\n" in head
                await reader.readexactly(2)
                for piece in said:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.005)
                if KEPT not in said[0]:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):  # the other side has left
            pass
        finally:
            writer.close()

    async def run() -> list[bytes]:
        server = await asyncio.start_server(peer, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        upstream, bodies = Upstream(), []
        try:
            for _ in range(times):
                reply = await upstream.post(f"http://{host}:{port}", "/x", b"{}", {"X-Key": "k"})
                try:
                    bodies.append(await reply.read())
                finally:
                    reply.close()
        finally:
            upstream.close()
            server.close()
            await asyncio.gather(*peers)
            await asyncio.sleep(0.01)  # what was closed is gone in the loop's next turns
        return bodies

    return asyncio.run(run()), len(peers)


def test_an_answer_with_a_length_leaves_its_connection_for_the_next():
    assert ask([OK + b"Content-Length: 5\r\n\r\nhel", b"lo"], times=3) == ([b"hello"] * 3, 1)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_chunks_are_put_together_however_they_are_cut(size):
    whole = CHUNKED + b"5\r\nhello\r\nB\r\n\r\n: there\r\n\r\n0\r\n\r\n"
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert ask(pieces)[0] == [b"hello\r\n: there\r\n"]


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\nConte", b"SMTP ready\r\n\r\n", CHUNKED + b"5\r\nhel", CHUNKED + b"zz\r\n",
     OK + b"Content-Length: 9\r\n\r\nhello", OK + b"Content-Length: x\r\n\r\n", b"x" * 100_000],
)  # fmt: skip
def test_what_breaks_off_or_is_no_answer_is_said(said):
    with pytest.raises(ConnectionBroken):
        ask([said])


def test_nobody_there_is_said():
    with pytest.raises(ConnectionBroken, match="nobody answers"):
        asyncio.run(Upstream().post("http://127.0.0.1:9", "/x", b"{}", {}))
