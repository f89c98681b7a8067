"""Run a command where there is no network but loopback, and write down every address that it turns to.

A network namespace of its own (Linux, `unshare`) has no way out at all. What is tried nevertheless is noted
by Python's audit events in the command and in all Python programs that it starts.
"""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

# Runs first in every Python program below; the engine is one too.
HOOK = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        host = address[0] if isinstance(address, tuple) else address
        with open(os.environ["NOTED"], "a") as file:
            file.write(f"{host}\\n")

sys.addaudithook(note)
"""
# Loopback is down in a new namespace. SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP are those of <linux/if.h>.
LOOPBACK_UP = """
import fcntl, socket, struct, sys, os
with socket.socket() as s:
    name, flags = struct.unpack("16sH", fcntl.ioctl(s, 0x8913, struct.pack("16sH14x", b"lo", 0))[:18])
    fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))
os.execv(sys.argv[1], sys.argv[1:])
"""
LOOPBACK = {"127.0.0.1", "localhost", "::1", "None"}


@cache
def cut_off() -> tuple[str, ...]:
    """The words before a command that cut it off; none where that cannot be done."""
    found = shutil.which("unshare")
    words = (str(found), "--net", "--map-root-user")
    if not found or subprocess.run([*words, "true"], capture_output=True).returncode:
        return ()
    return (*words, sys.executable, "-c", LOOPBACK_UP)


needs_namespace = pytest.mark.skipif(
    not cut_off(), reason="no network namespace can be made here (unshare --net --map-root-user)"
)


def run_alone(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command, without a network where that can be; `folder` gets what `turned_to` reads."""
    (folder / "sitecustomize.py").write_text(HOOK)
    (folder / "noted").touch()
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    known = os.environ | {"PYTHONPATH": paths, "NOTED": str(folder / "noted")} | environment
    words = [*cut_off(), sys.executable, *command]
    return subprocess.run(words, capture_output=True, text=True, env=known, timeout=900)


def turned_to(folder: Path) -> set[str]:
    """Hosts that were turned to, loopback included."""
    return set((folder / "noted").read_text().split())
