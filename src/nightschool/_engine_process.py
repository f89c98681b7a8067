"""One llama.cpp: started as a child process, or somebody's server that is already there.

Knows how to start it, whether it lives, what it said last and how to end it; not what may be asked of it
(engine).
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import httpx

from nightschool.errors import EngineError

CHILD = Path(__file__).with_name("_engine_child.py")
START_LIMIT_S = 900  # a large model on a slow disk takes minutes
LOG_TAIL_BYTES = 16_384
# Rounds that a thread of llama.cpp spins for the others before it sleeps. OpenMP's own 300,000 are a tenth
# faster on an idle machine at best; where anything else wants a core, a second engine, a training step, a
# browser, threads then spin for one that is not running (bench/RESULTS.md).
SPINS = "4000"
# Reading has no limit: an answer may take long, and an engine that dies closes the connection.
TIMEOUT = httpx.Timeout(None, connect=10, write=60)
# One connection fewer than llama.cpp has threads to hold them; idle ones end before llama.cpp ends them.
LIMITS = httpx.Limits(max_connections=31, max_keepalive_connections=31, keepalive_expiry=2.0)


@dataclass(frozen=True)
class Launch:
    """All that a child needs to know; without a `binary` it runs the llama.cpp that came with us."""

    model: str
    adapters: tuple[str, ...]
    ctx: int
    slots: int
    threads: int
    gpu_layers: int
    pooling: str  # vectors instead of answers, by "mean" or as the "model" says; "" for answers
    binary: str


class EngineProcess:
    """A running llama.cpp and a client that knows its address and key. `lora` lists its adapters by id."""

    def __init__(self, address: str, key: str, *, lora: tuple[str, ...], child: "_Child | None") -> None:
        self.address = address
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(
            base_url=address,
            headers=self.headers,
            timeout=TIMEOUT,
            limits=LIMITS,
            trust_env=False,  # a proxy must never see what is said on this machine
        )
        self.lora = lora
        self.in_flight = 0
        self._child = child

    @property
    def pid(self) -> int | None:
        """The child's process id; None for a server that somebody else started."""
        return self._child.process.pid if self._child else None

    def is_alive(self) -> bool:
        return self._child is None or self._child.process.poll() is None

    def has_died(self, within_s: float) -> bool:
        """True when the process ends within so many seconds: its connections break a little earlier."""
        if self._child is None:
            return False
        try:
            self._child.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self) -> str:
        """Why it ended, as far as that can be known."""
        return self._child.stop() if self._child else "the connection broke"

    def stop(self) -> None:
        """End it now; requests still open break."""
        if self._child:
            self._child.stop()  # first: it is the end of the connections that wakes those who wait
        self.client.close()


def connect(url: str, *, vocabulary: int) -> EngineProcess:
    """Somebody's llama-server, used as it is; a password in the URL is its key.

    Raises EngineError when nothing answers, or a model with another number of tokens than `vocabulary`.
    """
    parsed = httpx.URL(url)
    address = str(parsed.copy_with(username=None, password=None))
    engine = EngineProcess(address, parsed.password, lora=(), child=None)
    try:
        models = engine.client.get("/v1/models").raise_for_status().json()
        served = models["data"][0].get("meta", {}).get("n_vocab", vocabulary)
    except (httpx.HTTPError, ValueError, LookupError) as error:
        engine.stop()
        raise EngineError(
            f"No llama-server answers at {address!r} ({error}). Start it, or unset NIGHTSCHOOL_ENGINE."
        ) from error
    if served != vocabulary:
        engine.stop()
        raise EngineError(
            f"The llama-server at {address!r} runs another model: its vocabulary has {served:,} tokens and "
            f"that of the file {vocabulary:,}. Start it with the same file, or unset NIGHTSCHOOL_ENGINE."
        )
    return engine


def start(launch: Launch, *, names: tuple[str, ...]) -> EngineProcess:
    """Start a child and wait until it has loaded the model. `names` are the adapters' names, by id.

    Raises EngineError with llama.cpp's own reason when it cannot.
    """
    key = secrets.token_urlsafe(24)
    child = _Child()
    try:
        address = child.begin(asdict(launch) | {"key": key})
    except BaseException:  # Ctrl-C while a large model loads
        child.stop()
        raise
    if not address:
        raise EngineError(f"llama.cpp could not load {Path(launch.model).name!r}: {child.stop()}.")
    return EngineProcess(address, key, lora=names, child=child)


class _Child:
    """The process, its two pipes and its log: a file without a name, so nothing is ever left behind."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()
        self._lock = threading.Lock()
        self._reason = ""
        self._has_begun = False
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={"GOMP_SPINCOUNT": SPINS} | os.environ | {"GGML_NO_BACKTRACE": "1"},
            start_new_session=True,  # Ctrl-C and a closing terminal are the parent's business
        )

    def begin(self, settings: dict[str, object]) -> str:
        """Send the settings; the address when it is ready, or "" when it ended instead."""
        assert self.process.stdin and self.process.stdout
        watchdog = threading.Timer(START_LIMIT_S, self.process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            self.process.stdin.write(json.dumps(settings).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            watchdog.cancel()
        self._has_begun = bool(line)
        return str(json.loads(line)["address"]) if line else ""

    def stop(self) -> str:
        """End it and say what it said last. Closing its stdin is enough; what does not listen is killed."""
        assert self.process.stdin and self.process.stdout
        with self._lock:
            if self._log.closed:
                return self._reason
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
            self._reason = _reason(self._log, self.process.returncode, has_begun=self._has_begun)
            self._log.close()
            return self._reason


def _reason(log: IO[bytes], code: int, *, has_begun: bool) -> str:
    """The first error in the log of one that did not start; of others (their log is old) how they ended."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LOG_TAIL_BYTES))
    lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    crashes = [line for line in lines if "GGML_ASSERT" in line or "what():" in line]
    errors = [line for line in lines if re.search(r" E |error|Error", line)]
    news = crashes[-1:] if has_begun else crashes[-1:] or errors[:1] or lines[-1:]
    if not news:
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"
    line = re.sub(r"^[\d.]+ [EWI] +", "", news[0])  # 0.00.006.007 E llama_model_load: error loading model: …
    return line.removeprefix("llama_model_load: ").replace("error loading model: ", "").strip().rstrip(".")
