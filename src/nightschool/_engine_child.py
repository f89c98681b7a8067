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

external: "subprocess.Popen[bytes] | None" = None


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    answer = _private_stdout()
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asked
    threading.Thread(target=_leave_at_end_of_stdin, daemon=True).start()
    run = _run_binary if settings["binary"] else _run_xllamacpp
    address, running = run(settings)
    print(json.dumps({"address": address}), file=answer, flush=True)
    parent = os.getppid()
    while running() and os.getppid() == parent:  # a fork of the parent may hold stdin open
        time.sleep(1)
    _leave(1)


def _private_stdout() -> TextIO:
    """Keep stdout for the answer; C++ that prints to it reaches the log instead."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answer


def _leave_at_end_of_stdin() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    _leave(0)


def _leave(code: int) -> None:
    """At once: C++ destructors may wait for a request that never ends."""
    if external is not None:
        external.kill()
    os._exit(code)


def _run_xllamacpp(settings: dict[str, Any]) -> tuple[str, Any]:
    import xllamacpp

    params = xllamacpp.CommonParams()
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
        if settings["pooling"] == "mean":
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = settings["ctx"]  # a text is embedded in one piece
    server = xllamacpp.Server(params)

    def running(server: Any = server) -> bool:  # holds the server
        return True

    return server.listening_address, running


def _run_binary(settings: dict[str, Any]) -> tuple[str, Any]:
    """An external llama-server with the same settings; the key goes through its environment."""
    global external
    port = _free_port()
    arguments = [settings["binary"], "--model", settings["model"], "--host", "127.0.0.1", "--port", str(port)]
    for path in settings["adapters"]:
        arguments += ["--lora", path]
    if settings["adapters"]:
        arguments += ["--lora-init-without-apply"]
    arguments += [
        "--ctx-size",
        str(settings["ctx"] * settings["slots"]),
        "--parallel",
        str(settings["slots"]),
    ]
    arguments += ["--n-gpu-layers", str(settings["gpu_layers"]), "--threads", str(settings["threads"])]
    arguments += ["--threads-http", str(HTTP_THREADS), "--cache-ram", "0", "--no-prefill-assistant"]
    arguments += ["--no-warmup", "--jinja"]
    if settings["pooling"]:
        arguments += [
            "--embedding",
            "--batch-size",
            str(settings["ctx"]),
            "--ubatch-size",
            str(settings["ctx"]),
        ]
    if settings["pooling"] == "mean":
        arguments += ["--pooling", "mean"]
    external = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"LLAMA_API_KEY": settings["key"]},
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    address, process = f"http://127.0.0.1:{port}", external
    while not _is_healthy(address):
        if process.poll() is not None:
            _leave(1)
        time.sleep(0.05)
    return address, lambda: process.poll() is None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            address + "/health", timeout=5
        ):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()
