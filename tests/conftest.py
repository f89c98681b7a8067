"""Shared by tests: a home of its own for each, a server on it, and the public data beside the checkout."""

import signal
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def home(request, tmp_path_factory, monkeypatch):
    """A fresh home folder: no test reads or writes the person's own."""
    if request.node.get_closest_marker("one_server"):
        return request.getfixturevalue("module_home")
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def module_home(tmp_path_factory):
    """One home for all tests of a module, whose own `home` returns it: for servers that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("NIGHTSCHOOL_HOME", str(folder))
        yield folder


@pytest.fixture
def server(request, home):
    """A server with the settings that it has of itself."""
    if request.node.get_closest_marker("one_server"):
        yield request.getfixturevalue("module_server")
        return
    from serving import serving  # most tests need none of what it imports

    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def module_server(module_home):
    """The same for all tests of a module."""
    from serving import serving

    with serving() as server:
        yield server


@pytest.fixture
def client(server):
    """OpenAI's client of the server."""
    with server.openai() as client:
        yield client


@pytest.fixture(scope="session")
def shared():
    """The folder of public models and texts described in docs/testing.md; skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data beside the checkout")
    return SHARED
