"""`nightschool serve` as a person starts and stops it."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest
from click.testing import CliRunner

from nightschool.cli import main
from nightschool.server.listen import listen
from nightschool.settings import ServeSettings


@contextmanager
def serve(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and what it says when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nightschool", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
    )
    assert process.stdout
    try:
        ready, _, _ = select.select([process.stdout], [], [], 30)
        assert ready, "nothing was said"
        yield process, "".join(process.stdout.readline() for _ in range(5))
    finally:
        process.kill()
        process.communicate()


def address(said: str) -> str:
    found = re.search(r"http://\S+:\d+", said)
    assert found, said
    return found[0]


def ends(process: subprocess.Popen[str], code: int) -> str:
    """What it says at its end, on stderr."""
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code, errors
    return errors


def test_it_says_where_it_is_and_three_lines_to_try_and_ctrl_c_ends_it(home):
    with serve() as (process, said):
        url = address(said)
        assert said.count(url) == 4 and "/v1/chat/completions" in said and "OpenAI(base_url=" in said
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = httpx.post(url + "/v1/chat/completions", json=body, timeout=30)
        assert answer.json()["model"] == "ember"
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        assert ends(process, 0) == "Stopped.\n"
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_it_ends_at_once_while_somebody_chats_and_tells_them(home):
    with serve() as (process, said):
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "ignore_eos": True}
        # ember's context ends after 500 tokens: many such chats keep it busy
        body |= {"n": 32}
        with httpx.stream("POST", address(said) + "/v1/chat/completions", json=body, timeout=30) as stream:
            lines = stream.iter_lines()
            next(lines)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            rest = "".join(lines)
        assert ends(process, 0) == "Stopped.\n"
        assert time.monotonic() - begun < 10
        assert "server_stopping" in rest or "[DONE]" in rest


def test_a_kill_leaves_no_engine_behind(home):
    with serve() as (process, said):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        httpx.post(address(said) + "/v1/chat/completions", json=body, timeout=30)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert not psutil.wait_procs(children, timeout=10)[1]


def test_a_key_from_the_environment_is_asked_for_and_never_printed(home):
    with serve("--host", "0.0.0.0", NIGHTSCHOOL_API_KEY="s3cret") as (_, said):
        url = address(said).replace("0.0.0.0", "127.0.0.1")
        assert "s3cret" not in said
        assert httpx.get(url + "/v1/models").status_code == 401
        assert httpx.get(url + "/v1/models", headers={"x-api-key": "s3cret"}).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--host", "0.0.0.0"], "choose an API key with --api-key"),
        (["-m", "nobody"], "The model 'nobody' does not exist"),
        (["--host", "203.0.113.7", "--api-key", "x"], "Nobody can listen on 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_one_line(home, arguments, reason):
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 1 and reason in result.stderr and "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_said(home):
    with serve() as (_, said):
        port = address(said).rsplit(":", 1)[1]
        result = CliRunner().invoke(main, ["serve", "--port", port])
    assert result.exit_code == 1 and "another server may run already" in result.stderr


def test_no_piece_of_an_answer_waits_for_an_acknowledgement():
    with listen(ServeSettings(port=0)) as listening:
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
