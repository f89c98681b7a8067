"""Shared by all tests: a home of its own for each, and the public data where it lies beside the checkout."""

import signal
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """A fresh home folder: no test reads or writes the person's own."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of public models and texts described in docs/testing.md; skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data beside the checkout")
    return SHARED
