"""The engine on tiny real models: answers, adapters, and what may go wrong around a child process."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import httpx
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import ARCHS, TYPES, write_tiny, write_tiny_adapter

import nightschool.engine as engine_module
from nightschool.engine import Engine
from nightschool.errors import EngineError, FileFormatError, NotFound

HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0.0, "ignore_eos": True}
SRC = Path(engine_module.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and two loud adapters."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny(folder / "base.gguf", "llama")
    write_tiny_adapter(folder / "a.gguf", base, seed=1)
    write_tiny_adapter(folder / "b.gguf", base, seed=2)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    """Three slots, both adapters."""
    adapters = {"a": folder / "a.gguf", "b": folder / "b.gguf"}
    with Engine(folder / "base.gguf", adapters=adapters, slots=3) as engine:
        yield engine


@pytest.fixture
def lonely(folder):
    """One slot, no adapters, room for long answers: a process of its own for tests that break it."""
    with Engine(folder / "base.gguf", ctx=4096) as engine:
        yield engine


def gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether the process ends in time; a zombie has ended."""
    for _ in range(int(within_s * 20)):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


# Models -------------------------------------------------------------------------------------------

CASES = [(arch, "F32", False) for arch in ARCHS] + [("llama", type, True) for type in TYPES]
CASES += [(arch, "Q4_K", True) for arch in ARCHS[1:]]


@pytest.mark.parametrize(("arch", "type", "tied"), CASES)
def test_llama_cpp_runs_every_tiny_model_and_its_predictions_depend_on_the_text(arch, type, tied, tmp_path):
    base = write_tiny(tmp_path / "m.gguf", arch, type, tied=tied)
    with Engine(base) as engine:
        found = [
            engine.complete(prompt, max_tokens=4, n_probs=1, **GREEDY)["completion_probabilities"][0][
                "logprob"
            ]
            for prompt in ("the stone", "and we li in")
        ]
    assert all(-8 < logprob <= 0 for logprob in found)
    assert found[0] != found[1]


# Text ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "llama3", "qwen2", "gemma3"])
def vocabulary(request, tmp_path_factory):
    """SentencePiece with a BOS, byte-level BPE with and without one."""
    base = write_tiny(tmp_path_factory.mktemp("vocabulary") / "m.gguf", request.param, layers=1)
    with Engine(base) as engine:
        yield engine


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=40), max_size=8), add=st.booleans(), parse=st.booleans())
def test_many_texts_are_tokenised_as_each_alone(vocabulary, texts, add, parse):
    texts = [*texts, "", "in the<|end|>\n", " "]
    alone = [vocabulary.tokenize(text, add_special=add, parse_special=parse) for text in texts]
    assert vocabulary.tokenize_many(texts, add_special=add, parse_special=parse) == alone


def test_batches_of_texts_keep_their_order(vocabulary):
    texts = [f"stone {i}" for i in range(engine_module.BATCH_TEXTS * 2 + 3)]
    found = vocabulary.tokenize_many(iter(texts))
    assert [vocabulary.detokenize(tokens).strip() for tokens in found] == texts


def test_ten_thousand_short_texts_take_seconds(engine):
    start = time.perf_counter()
    assert len(engine.tokenize_many(["the stone and the sea of the world"] * 10_000)) == 10_000
    assert time.perf_counter() - start < 5


def test_special_marks_are_read_or_taken_as_text(engine):
    end = engine.tokenize("<|end|>")[-1]
    assert end in engine.tokenize("x<|end|>") and end not in engine.tokenize("x<|end|>", parse_special=False)


def test_a_template_covers_the_whole_conversation_and_bos_comes_once(vocabulary):
    messages = [*HELLO, {"role": "assistant", "content": "yes"}]
    text = vocabulary.apply_template(messages, add_generation_prompt=False)
    assert text == "<|user|>\nhello<|end|>\n<|assistant|>\nyes<|end|>\n"
    assert vocabulary.apply_template(HELLO) == "<|user|>\nhello<|end|>\n<|assistant|>\n"
    before, after = vocabulary._specials
    tokens = vocabulary.tokenize(text, add_special=True)
    assert all(tokens.count(bos) == 1 for bos in before) and not after


# Answers ------------------------------------------------------------------------------------------


def test_a_streamed_answer_is_the_whole_answer(engine):
    whole = engine.chat(HELLO, max_tokens=40, **GREEDY)
    pieces = list(engine.stream_chat(HELLO, max_tokens=40, **GREEDY))
    assert "".join(pieces) == whole and len(pieces) > 5


def test_a_seed_repeats_an_answer_and_another_one_does_not(engine):
    answers = [engine.chat(HELLO, seed=seed, temperature=1.5, max_tokens=30) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_stop_text_ends_an_answer(engine):
    whole = engine.chat(HELLO, max_tokens=40, **GREEDY)
    assert engine.chat(HELLO, max_tokens=40, stop=[whole[5:8]], **GREEDY) == whole[: whole.index(whole[5:8])]


def test_completion_goes_on_from_token_ids(engine):
    tokens = engine.tokenize("the stone", add_special=True)
    from_text = engine.complete("the stone", max_tokens=6, n_probs=2, **GREEDY)
    from_ids = engine.complete(tokens, max_tokens=6, n_probs=2, **GREEDY)
    assert from_ids["tokens"] == from_text["tokens"] and len(from_ids["tokens"]) == 6
    assert len(from_ids["completion_probabilities"][0]["top_logprobs"]) == 2


def test_the_engine_says_what_does_not_fit_into_its_context(engine):
    with pytest.raises(EngineError, match=r"needs \d,\d+ tokens and the engine's context holds 512"):
        engine.chat([{"role": "user", "content": "stone " * 1000}])


def test_a_refusal_carries_the_reason(engine):
    with pytest.raises(EngineError, match="refused the request: .*[Gg]rammar"):
        engine.complete("x", grammar="root ::= (", max_tokens=2)


def test_a_closed_stream_frees_its_slot(lonely):
    stream = lonely.stream_chat(HELLO, max_tokens=4000, **GREEDY)
    next(stream)
    stream.close()
    start = time.perf_counter()
    lonely.chat(HELLO, max_tokens=1)
    assert time.perf_counter() - start < 2
    assert lonely._process.in_flight == 0


def test_vectors_have_length_one_and_differ(folder):
    with Engine(folder / "base.gguf", embedding=True) as engine:
        vectors = np.array(engine.embed(["the stone", "we in on", "the stone"]))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert np.allclose(vectors[0], vectors[2], atol=1e-4) and not np.allclose(
        vectors[0], vectors[1], atol=0.1
    )


@given(
    events=st.lists(st.text(min_size=1), max_size=5),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    newline=st.sampled_from(["\n\n", "\r\n\r\n"]),
)
def test_events_survive_any_cut_and_any_character(events, cuts, newline):
    lines = [f"data: {json.dumps({'text': text}, ensure_ascii=False)}" for text in events]
    raw = newline.join([*lines, "data: [DONE]", ""]).encode("utf-8", "surrogatepass")
    edges = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    pieces = [raw[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    assert [event["text"] for event in engine_module._events(pieces)] == events


# Settings -----------------------------------------------------------------------------------------


def test_settings_reach_llama_cpp(folder):
    with Engine(folder / "base.gguf", ctx=192, slots=2, threads=3) as engine:
        props = engine._process.client.get("/props").json()
        assert props["total_slots"] == 2
        assert props["default_generation_settings"]["n_ctx"] in (192, 256)  # llama.cpp rounds up
        assert psutil.Process(engine._process.pid).num_threads() >= 3
    with pytest.raises(TypeError):
        Engine(folder / "base.gguf", contxt=1)


def test_the_context_is_what_the_model_was_trained_for(folder):
    with Engine(folder / "base.gguf") as engine:
        assert engine.settings.ctx == 512


# Adapters -----------------------------------------------------------------------------------------

STACKS = [{}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5}, {"a": 1.0, "b": 1.0}]


def spoken(engine, stack, prompt="the stone and the sea of the world"):
    """Tokens and log-probabilities of a short greedy answer."""
    body = engine.complete(prompt, stack=stack, max_tokens=6, n_probs=1, **GREEDY)
    return body["tokens"], [entry["logprob"] for entry in body["completion_probabilities"]]


@pytest.mark.parametrize("slots", [1, 3])
def test_no_answer_comes_from_the_cache_of_another_adapter(folder, slots):
    adapters = {"a": folder / "a.gguf", "b": folder / "b.gguf"}
    fresh = []
    for stack in STACKS:
        with Engine(folder / "base.gguf", adapters=adapters) as engine:
            fresh.append(spoken(engine, stack))
    assert len({tuple(tokens) for tokens, _ in fresh}) == len(STACKS), "the adapters must be told apart"
    with Engine(folder / "base.gguf", adapters=adapters, slots=slots) as engine:
        order = list(range(len(STACKS))) * 4
        random.Random(slots).shuffle(order)
        with ThreadPoolExecutor(slots) as pool:
            for index, (tokens, logprobs) in zip(
                order, pool.map(lambda index: spoken(engine, STACKS[index]), order), strict=True
            ):
                assert tokens == fresh[index][0]
                assert np.allclose(logprobs, fresh[index][1], atol=2e-3)


def test_adapters_are_loaded_but_asleep(engine):
    assert [entry["scale"] for entry in engine._process.client.get("/lora-adapters").json()] == [0.0, 0.0]


def test_an_adapter_that_is_not_loaded_is_named(engine):
    with pytest.raises(NotFound, match="'c' is not loaded"):
        engine.chat(HELLO, stack={"a": 1.0, "c": 1.0})


def test_an_adapter_arrives_while_an_answer_is_being_written(lonely, folder):
    asked = {"messages": HELLO, "max_tokens": 3000, **GREEDY}
    whole = lonely.chat(**asked)
    old = lonely._process.pid
    stream = lonely.stream_chat(**asked)
    first = next(stream)
    lonely.add_adapter("a", folder / "a.gguf")
    assert psutil.pid_exists(old), "the old process must live until its answer is complete"
    changed = lonely.chat(**asked, stack={"a": 1.0})
    assert first + "".join(stream) == whole != changed
    assert gone(old)
    lonely.remove_adapter("a")
    assert lonely.adapters == {} and lonely.chat(**asked) == whole


def test_closing_ends_a_replaced_process_too(folder):
    with Engine(folder / "base.gguf", ctx=4096) as engine:
        stream = engine.stream_chat(HELLO, max_tokens=4000, **GREEDY)
        next(stream)
        old = engine._process.pid
        engine.add_adapter("a", folder / "a.gguf")
        assert psutil.pid_exists(old)
    assert gone(old)
    with pytest.raises(EngineError):
        list(stream)


def test_adapters_come_and_go_under_load_and_no_request_fails(lonely, folder):
    stop, failures, done = threading.Event(), [], []

    def ask():
        while not stop.is_set():
            try:
                done.append("".join(lonely.stream_chat(HELLO, max_tokens=20, **GREEDY)))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for name in ("a", "b"):
        lonely.add_adapter(name, folder / f"{name}.gguf")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures and len(set(done)) == 1 and len(done) > 3


def test_a_base_is_no_adapter_and_another_architecture_does_not_fit(lonely, folder, tmp_path):
    with pytest.raises(FileFormatError, match="not an adapter"):
        lonely.add_adapter("x", folder / "base.gguf")
    other = write_tiny_adapter(tmp_path / "q.gguf", write_tiny(tmp_path / "m.gguf", "qwen2"))
    with pytest.raises(FileFormatError, match="'qwen2' models, and the base is 'llama'"):
        lonely.add_adapter("x", other)
    assert lonely.health()


# What may go wrong --------------------------------------------------------------------------------


def test_a_killed_engine_answers_the_next_request(lonely):
    before, pid = lonely.chat(HELLO, max_tokens=20, **GREEDY), lonely._process.pid
    os.kill(pid, signal.SIGKILL)
    assert lonely.chat(HELLO, max_tokens=20, **GREEDY) == before
    assert lonely._process.pid != pid and gone(pid)


def test_a_request_during_which_the_engine_dies_is_asked_again(lonely):
    killer = threading.Timer(0.05, os.kill, (lonely._process.pid, signal.SIGKILL))
    killer.start()
    answer = lonely.complete("the stone", max_tokens=1000, **GREEDY)
    killer.join()
    assert answer["tokens"] == lonely.complete("the stone", max_tokens=1000, **GREEDY)["tokens"]


def test_a_broken_stream_fails_with_one_sentence_and_the_next_one_works(lonely):
    stream = lonely.stream_chat(HELLO, max_tokens=4000, **GREEDY)
    next(stream)
    os.kill(lonely._process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="stopped before the answer was complete .*signal 9.*Ask again"):
        list(stream)
    assert len(list(lonely.stream_chat(HELLO, max_tokens=5, **GREEDY))) == 5


def test_many_threads_and_many_kills_leave_no_wrong_answer_and_no_process(folder):
    with Engine(folder / "base.gguf", slots=2) as engine:
        right = engine.tokenize("the stone and the sea")
        pids = set()

        def ask(number):
            if number % 20 == 0:
                pids.add(engine._process.pid)
                os.kill(engine._process.pid, signal.SIGKILL)
            try:
                return engine.tokenize("the stone and the sea")
            except EngineError:  # killed twice in one request
                return None

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(100)))
        pids.add(engine._process.pid)
    assert answers.count(right) > 90 and set(map(str, answers)) <= {str(right), "None"}
    assert len(pids) > 3 and all(gone(pid) for pid in pids)


def test_a_model_that_llama_cpp_refuses_is_refused_with_its_reason(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "nonsense")
    writer.add_tensor("x", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    before = psutil.Process().children()
    with pytest.raises(
        EngineError, match="could not load 'odd.gguf': unknown model architecture: 'nonsense'"
    ):
        Engine(tmp_path / "odd.gguf")
    assert psutil.Process().children() == before


def test_a_damaged_file_never_reaches_llama_cpp(folder, tmp_path):
    raw = (folder / "base.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(FileFormatError, match="half.gguf"):
        Engine(tmp_path / "half.gguf")
    with pytest.raises(NotFound):
        Engine(tmp_path / "none.gguf")


def test_nothing_is_left_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it remembers the first answer
    children = psutil.Process().children()
    with Engine(folder / "base.gguf") as engine:
        pid = engine._process.pid
        engine.chat(HELLO, max_tokens=2)
    assert gone(pid) and psutil.Process().children() == children
    assert tempfile.gettempdir() == str(tmp_path) and not os.listdir(tmp_path)
    with pytest.raises(EngineError, match="closed"):
        engine.chat(HELLO)
    engine.close()


START = """
import sys, threading, time
from pathlib import Path
from nightschool.engine import Engine
engine = Engine(Path(sys.argv[1]))
print(engine._process.pid, flush=True)
{then}
"""


def run_parent(base: Path, then: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(then=then), str(base)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SRC)},
    )
    assert process.stdout
    with process.stdout:
        return process, int(process.stdout.readline())


def test_the_engine_dies_with_a_killed_parent(folder):
    parent, pid = run_parent(folder / "base.gguf", "time.sleep(60)")
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    assert gone(pid)


def test_the_engine_dies_when_a_fork_of_the_killed_parent_lives_on(folder):
    then = "import os\nif os.fork() == 0: time.sleep(20)\ntime.sleep(60)"
    parent, pid = run_parent(folder / "base.gguf", then)
    forks = [child for child in psutil.Process(parent.pid).children() if child.pid != pid]
    parent.kill()
    parent.wait()
    assert gone(pid)
    for fork in forks:
        fork.kill()


def test_the_engine_dies_with_a_parent_that_forgot_to_close_it(folder):
    parent, pid = run_parent(folder / "base.gguf", "")
    assert parent.wait(20) == 0 and gone(pid)


def test_the_engine_outlives_the_thread_that_started_it(folder):
    with ThreadPoolExecutor(1) as pool:
        engine = pool.submit(Engine, folder / "base.gguf").result()
    with engine:
        time.sleep(0.3)
        pid = engine._process.pid
        assert engine.health() and engine.chat(HELLO, max_tokens=2) is not None
        assert engine._process.pid == pid


def test_ctrl_c_in_the_terminal_does_not_reach_the_engine(lonely):
    assert os.getsid(lonely._process.pid) != os.getsid(0)
    os.kill(lonely._process.pid, signal.SIGINT)
    time.sleep(0.1)
    assert lonely.health()


def test_strangers_and_web_pages_get_nothing(lonely):
    address = str(lonely._process.client.base_url)
    assert address.startswith("http://127.0.0.1:")
    assert httpx.post(address + "/completion", json={"prompt": "x"}, trust_env=False).status_code == 401
    evil = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(address + "/completion", headers=evil, trust_env=False)
    assert answer.headers.get("access-control-allow-origin") not in ("*", "https://evil.example")
    command = " ".join(psutil.Process(lonely._process.pid).cmdline())
    assert lonely._process.client.headers["authorization"].removeprefix("Bearer ") not in command


# Engines of other people --------------------------------------------------------------------------

STAND_IN = """#!{python}
# A llama-server for this test: the real one's options, xllamacpp inside.
import argparse, os, time
import xllamacpp
parser = argparse.ArgumentParser()
for name in ("model", "host", "port", "ctx-size", "parallel", "threads", "n-gpu-layers", "threads-http"):
    parser.add_argument("--" + name, required=True)
for name in ("no-prefill-assistant", "no-warmup", "jinja", "lora-init-without-apply"):
    parser.add_argument("--" + name, action="store_true")
parser.add_argument("--cache-ram", required=True)
parser.add_argument("--lora", action="append", default=[])
options = parser.parse_args()
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx = options.model, int(options.port), int(options.ctx_size)
params.hostnames, params.n_parallel, params.n_gpu_layers = [options.host], int(options.parallel), 0
params.api_keys, params.cache_ram_mib = [os.environ["LLAMA_API_KEY"]], int(options.cache_ram)
params.prefill_assistant, params.warmup = not options.no_prefill_assistant, not options.no_warmup
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in options.lora]
params.cpuparams.n_threads = int(options.threads)
server = xllamacpp.Server(params)
time.sleep(600)
"""


@pytest.fixture
def llama_server(tmp_path):
    path = tmp_path / "llama-server"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return path


def test_an_external_llama_server_does_the_same_work(engine, folder, llama_server, monkeypatch):
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", str(llama_server))
    with Engine(folder / "base.gguf", adapters={"a": folder / "a.gguf"}) as external:
        supervisor = psutil.Process(external._process.pid)
        (server,) = supervisor.children()
        for stack in ({}, {"a": 1.0}):
            assert spoken(external, stack)[0] == spoken(engine, stack)[0]
        assert external.apply_template(HELLO) == engine.apply_template(HELLO)
        server.kill()
        assert gone(supervisor.pid)
        assert spoken(external, {})[0] == spoken(engine, {})[0]
        supervisor = psutil.Process(external._process.pid)
        (server,) = supervisor.children()
    assert gone(supervisor.pid) and gone(server.pid)


def test_a_killed_supervisor_takes_the_external_server_with_it(folder, llama_server, monkeypatch):
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", str(llama_server))
    with Engine(folder / "base.gguf") as external:
        (server,) = psutil.Process(external._process.pid).children()
        os.kill(external._process.pid, signal.SIGKILL)
        assert gone(server.pid)


def test_a_program_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", "/no/such/llama-server")
    with pytest.raises(EngineError, match="'/no/such/llama-server', which is not a program"):
        Engine(folder / "base.gguf")


@pytest.fixture
def url(lonely):
    """The URL of a server that somebody else started, with its key as the password."""
    address = lonely._process.client.base_url
    key = lonely._process.client.headers["authorization"].removeprefix("Bearer ")
    return f"http://:{key}@{address.host}:{address.port}"


def test_a_running_server_is_used_as_it_is_and_takes_no_adapters(lonely, url, folder, monkeypatch):
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", url)
    with Engine(folder / "base.gguf") as remote:
        assert remote.chat(HELLO, max_tokens=9, **GREEDY) == lonely.chat(HELLO, max_tokens=9, **GREEDY)
        with pytest.raises(EngineError, match="no adapter can be loaded") as refusal:
            remote.add_adapter("a", folder / "a.gguf")
        assert url.split(":")[2].split("@")[0] not in str(refusal.value)
    assert lonely.health()


def test_a_running_server_with_another_model_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", url)
    with pytest.raises(EngineError, match="runs another model"):
        Engine(write_tiny(tmp_path / "m.gguf", "qwen2"))


def test_a_server_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setenv("NIGHTSCHOOL_ENGINE", "http://127.0.0.1:9")
    with pytest.raises(EngineError, match="No llama-server answers at 'http://127.0.0.1:9'"):
        Engine(folder / "base.gguf")
