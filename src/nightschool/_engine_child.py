"""The program that `_engine_process` starts: it runs llama.cpp's server and leaves when its parent does.

It is run as a file and imports nothing of the package, so that it starts quickly and a crash in C++ takes
nothing else down. Settings come as one line of JSON on stdin (a key on the command line could be read by
other users); the answer is one line of JSON on stdout, `{"address": …}`; everything llama.cpp prints goes
to stderr.

The end of stdin means that the parent is gone, whatever ended it. Linux could send a signal instead
(PR_SET_PDEATHSIG), but that follows the parent's *thread*, and engines are started from short-lived ones;
it is used only for an external binary, which this program starts from its main thread.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HTTP_THREADS = 32  # each kept-alive connection holds one

Settings = dict[str, Any]


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    answer = _private_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asked
    engine = Binary(settings) if settings["binary"] else Library(settings)
    threading.Thread(target=_leave_at_end_of_stdin, args=(engine,), daemon=True).start()
    print(json.dumps({"address": engine.load()}), file=answer, flush=True)
    parent = os.getppid()
    while engine.is_running() and os.getppid() == parent:  # a fork of the parent may hold stdin open
        time.sleep(1)
    _leave(engine, 1)


def _private_stdout() -> TextIO:
    """Keep stdout for the answer; C++ that prints to it reaches the log instead."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answer


def _leave_at_end_of_stdin(engine: "Library | Binary") -> None:
    while os.read(0, 4096):
        pass
    _leave(engine, 0)


def _leave(engine: "Library | Binary", code: int) -> None:
    """At once: C++ destructors may wait for a request that never ends."""
    engine.kill()
    os._exit(code)


class Library:
    """llama.cpp's server inside this process, through xllamacpp."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.server: Any = None

    def load(self) -> str:
        """Load the model and return the server's address."""
        import xllamacpp  # only here: an external binary does without

        settings, params = self.settings, xllamacpp.CommonParams()
        params.model.path = settings["model"]
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in settings["adapters"]]
        params.n_ctx = settings["ctx"] * settings["slots"]
        params.n_parallel = settings["slots"]
        params.n_gpu_layers = settings["gpu_layers"]
        params.cpuparams.n_threads = settings["threads"]
        params.cpuparams_batch.n_threads = settings["threads"]
        params.api_keys = [settings["key"]]
        params.cors_origins = "localhost"
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_threads_http = HTTP_THREADS
        params.cache_ram_mib = 0  # this cache mixes up prompts read under different adapters
        params.cache_idle_slots = False
        params.prefill_assistant = False  # else a template ends inside the last answer instead of after it
        params.fit_params = False  # the context is as asked for, or an error
        params.warmup = False
        params.ui = False
        params.verbosity = 1  # errors; a warning for each request would fill the disk in the end
        if settings["pooling"]:
            params.embedding = True
            params.n_batch = params.n_ubatch = settings["ctx"]  # a text is embedded in one piece
        if settings["pooling"] == "mean":
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        self.server = xllamacpp.Server(params)
        return str(self.server.listening_address)

    def is_running(self) -> bool:
        return True  # it lives and dies with this process

    def kill(self) -> None:
        pass


class Binary:
    """An external llama-server with the same settings; the key goes through its environment."""

    def __init__(self, settings: Settings) -> None:
        self.port = _free_port()
        self.process = subprocess.Popen(
            [settings["binary"], *_arguments(settings, self.port)],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LLAMA_API_KEY": settings["key"]},
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )

    def load(self) -> str:
        """Wait until it has loaded the model and return its address; leave when it ends instead."""
        address = f"http://127.0.0.1:{self.port}"
        while not _is_healthy(address):
            if not self.is_running():
                _leave(self, 1)
            time.sleep(0.05)
        return address

    def is_running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()


def _arguments(settings: Settings, port: int) -> list[str]:
    options: list[tuple[str, ...]] = [
        ("--model", settings["model"]),
        ("--host", "127.0.0.1"),
        ("--port", str(port)),
        ("--ctx-size", str(settings["ctx"] * settings["slots"])),
        ("--parallel", str(settings["slots"])),
        ("--threads", str(settings["threads"])),
        ("--n-gpu-layers", str(settings["gpu_layers"])),
        ("--threads-http", str(HTTP_THREADS)),
        ("--cache-ram", "0"),
        ("--no-prefill-assistant",),
        ("--no-warmup",),
        ("--jinja",),
    ]
    options += [("--lora", path) for path in settings["adapters"]]
    if settings["adapters"]:
        options += [("--lora-init-without-apply",)]
    if settings["pooling"]:
        size = str(settings["ctx"])
        options += [("--embedding",), ("--batch-size", size), ("--ubatch-size", size)]
    if settings["pooling"] == "mean":
        options += [("--pooling", "mean")]
    return [part for option in options for part in option]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_healthy(address: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(address + "/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()
