"""What happens to answers when adapters come and go, engines die and clients leave."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from serving import Serving, serving
from tiny import write_tiny, write_tiny_adapter

from nightschool.engine import Engine
from nightschool.hub import register

HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A base with a long context, and two loud adapters for it."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny(folder / "tiny.gguf", "llama", context=4096)
    write_tiny_adapter(folder / "a.gguf", base, seed=1)
    write_tiny_adapter(folder / "b.gguf", base, seed=2)
    return folder


@pytest.fixture(autouse=True)
def base(home, files) -> str:
    """The base under its name in a home of the test's own."""
    return register(files / "tiny.gguf", "tiny").name


@pytest.fixture
def server(base) -> Iterator[Serving]:
    with serving(model=base, slots=2) as server:
        yield server


def put_on_the_shelf(home: Path, file: Path, name: str) -> None:
    """As training does: a folder that appears whole."""
    draft = home / "adapters" / f".{name}.draft"
    draft.mkdir(parents=True)
    shutil.copy(file, draft / "adapter.gguf")
    (draft / "card.json").write_text('{"base": {"name": "tiny"}}')
    shutil.rmtree(home / "adapters" / name, ignore_errors=True)
    draft.rename(home / "adapters" / name)


def ask(client, model="tiny", **changes):
    options = GREEDY | {"max_tokens": 12} | changes
    return client.chat.completions.create(model=model, messages=HELLO, **options)


def said(client, model="tiny", **changes):
    return ask(client, model, **changes).choices[0].message.content


def engines() -> list[psutil.Process]:
    """The engine processes of this test."""
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if "_engine_child" in " ".join(child.cmdline())]


def expected(files: Path, stack: dict[str, float]) -> str:
    paths = {name: files / f"{name}.gguf" for name in stack}
    with Engine(files / "tiny.gguf", adapters=paths) as engine:
        return engine.chat(HELLO, stack=stack, temperature=0.0, ignore_eos=True, max_tokens=12)


# Adapters -----------------------------------------------------------------------------------------


def test_every_stack_answers_as_the_engine_does_with_it(client, home, files):
    put_on_the_shelf(home, files / "a.gguf", "a")
    put_on_the_shelf(home, files / "b.gguf", "b")
    stacks = {"tiny": {}, "tiny+a": {"a": 1.0}, "a": {"a": 1.0}, "tiny+a@0.5+b": {"a": 0.5, "b": 1.0}}
    answers = {name: said(client, name) for name in stacks}
    assert answers == {name: expected(files, stack) for name, stack in stacks.items()}
    assert len(set(answers.values())) == 3
    assert {model.id for model in client.models.list()} == {"ember", "tiny", "tiny+a", "tiny+b"}
    assert client.models.retrieve("tiny+a@0.5+b").id == "tiny+a@0.5+b"


def test_stacks_asked_side_by_side_do_not_mix(client, home, files):
    put_on_the_shelf(home, files / "a.gguf", "a")
    put_on_the_shelf(home, files / "b.gguf", "b")
    names = ["tiny", "tiny+a", "tiny+b"]
    alone = {name: said(client, name) for name in names}
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda name: (name, said(client, name)), names * 6))
    assert all(answer == alone[name] for name, answer in together)


def test_a_tuned_models_name_is_understood(client, home, files):
    put_on_the_shelf(home, files / "a.gguf", "ft-support-abc123")
    assert said(client, "ft:tiny:local:support:abc123") == expected(files, {"a": 1.0})
    with pytest.raises(openai.NotFoundError):
        said(client, "ft:tiny:local:support:other")


def test_an_adapter_that_appears_while_somebody_chats_answers_at_once_and_disturbs_nobody(
    client, home, files
):
    undisturbed = said(client, max_tokens=800)
    stream = ask(client, stream=True, max_tokens=800)
    first = next(stream)
    put_on_the_shelf(home, files / "a.gguf", "a")
    assert said(client, "tiny+a") == expected(files, {"a": 1.0})
    chunks = [first, *stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == undisturbed
    assert chunks[-1].choices[0].finish_reason == "length"
    assert wait_until(lambda: len(engines()) == 1), "the old engine has not ended"


def test_a_new_version_of_an_adapter_replaces_the_old(client, home, files):
    put_on_the_shelf(home, files / "a.gguf", "work")
    assert said(client, "tiny+work") == expected(files, {"a": 1.0})
    put_on_the_shelf(home, files / "b.gguf", "work")
    assert said(client, "tiny+work") == expected(files, {"b": 1.0})


def test_a_removed_adapter_is_unknown_and_does_not_keep_an_engine_from_starting(client, home, files):
    put_on_the_shelf(home, files / "a.gguf", "a")
    before = said(client)
    said(client, "tiny+a")
    shutil.rmtree(home / "adapters" / "a")
    with pytest.raises(openai.NotFoundError):
        said(client, "tiny+a")
    (engine,) = engines()
    engine.kill()
    assert said(client) == before


def test_an_adapter_for_another_base_is_refused(client, home, files, tmp_path):
    other = write_tiny(tmp_path / "other.gguf", "qwen2")
    put_on_the_shelf(home, write_tiny_adapter(tmp_path / "x.gguf", other), "x")
    with pytest.raises(openai.BadRequestError, match="'qwen2'"):
        said(client, "tiny+x")


def test_no_more_than_two_bases_are_held(client, server, home, files, tmp_path):
    for number in range(3):
        register(write_tiny(tmp_path / f"m{number}.gguf", "llama", seed=number), f"m{number}")
    answers = [said(client, f"m{number}") for number in (0, 1, 2, 0, 1, 2)]
    assert answers[:3] == answers[3:] and len(set(answers)) == 3
    assert wait_until(lambda: len(engines()) == 2) and server.state.engines.running == 2


# Death and departure ------------------------------------------------------------------------------


def test_after_a_kill_the_next_request_is_answered(client):
    before = said(client)
    for _ in range(3):
        (engine,) = engines()
        engine.kill()
        assert said(client) == before


def test_an_answer_under_way_at_a_kill_is_asked_again(client):
    undisturbed = said(client, max_tokens=1500)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(said, client, max_tokens=1500)
        time.sleep(0.1)
        (engine,) = engines()
        engine.kill()
        assert answer.result() == undisturbed


def test_a_stream_under_way_at_a_kill_ends_with_an_error(client):
    stream = ask(client, stream=True, max_tokens=3000)
    next(stream)
    (engine,) = engines()
    engine.kill()
    with pytest.raises(openai.APIError, match="stopped before the answer was complete"):
        list(stream)
    assert said(client)


def test_a_client_that_leaves_frees_its_slot(base):
    with serving(model=base, slots=1) as server, server.openai() as client:
        body = {"model": base, "messages": HELLO, "ignore_eos": True, "max_tokens": 4000}
        with pytest.raises(httpx.ReadTimeout):  # nothing comes before the answer is whole
            httpx.post(server.url + "/v1/chat/completions", json=body, timeout=0.1)
        left = client.chat.completions.create(
            model=base, messages=HELLO, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
        )
        next(left)
        left.close()
        begun = time.monotonic()
        assert said(client)
        assert time.monotonic() - begun < 2
        assert wait_until(lambda: not server.state.engines.chatting.is_active)


def test_more_chats_than_slots_all_get_answers(client):
    alone = said(client)
    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(lambda _: said(client), range(20))) == {alone}


def test_whoever_holds_for_chats_is_told_when_the_first_begins_and_the_last_ends(client, server):
    told: list[bool] = []
    chatting = server.state.engines.chatting
    chatting.listen(told.append)
    first, second = (ask(client, stream=True, max_tokens=500) for _ in range(2))
    next(first), next(second)
    assert chatting.is_active and told == [True]
    first.close()
    second.close()
    assert wait_until(lambda: told == [True, False]) and not chatting.is_active
    assert time.monotonic() - chatting.ended_at < 5


def test_a_client_that_leaves_while_the_engine_starts_leaves_no_second_one(base):
    body = {"model": base, "messages": HELLO, "stream": True}
    with serving(model=base) as server, server.openai() as client:
        for wait_s in (0.02, 0.1, 0.2):
            with suppress(httpx.ReadTimeout):
                httpx.post(server.url + "/v1/chat/completions", json=body, timeout=wait_s, trust_env=False)
        said(client)
        assert wait_until(lambda: len(engines()) == 1)
    assert wait_until(lambda: not engines())


def test_nothing_is_left_when_the_server_ends(base):
    files_before = psutil.Process().num_fds()
    with serving(model=base) as server, server.openai() as client:
        said(client)
        client.embeddings.create(model=base, input="hello")
        client.completions.create(model=base, prompt="hello", max_tokens=0, echo=True, logprobs=1)
        assert len(psutil.Process().children()) >= 3
    assert wait_until(lambda: not psutil.Process().children())
    assert psutil.Process().num_fds() <= files_before + 1


def test_an_answer_under_way_when_the_server_stops_is_told_so(base):
    with serving(model=base) as server, server.openai() as client:
        stream = ask(client, stream=True, max_tokens=4000)
        next(stream)
        server.app.state.nightschool.closing.set()
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)


def wait_until(is_so, within_s: float = 5.0) -> bool:
    """Whether it becomes so in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.02)
    return False


# Embeddings ---------------------------------------------------------------------------------------


def test_embeddings_are_the_engines_in_both_encodings_for_texts_and_token_ids(client, files):
    texts = ["the stone", "we in on"]
    with Engine(files / "tiny.gguf", embedding=True) as engine:
        expected = engine.embed(texts)
        tokens = [engine.tokenize(text, add_special=True) for text in texts]
    for given in (texts, tokens):
        for encoding in ({}, {"encoding_format": "float"}):  # the client asks for base64 by itself
            found = client.embeddings.create(model="tiny", input=given, **encoding)
            assert [each.index for each in found.data] == [0, 1] and found.usage.prompt_tokens == sum(
                map(len, tokens)
            )
            for mine, theirs in zip(found.data, expected, strict=True):
                assert mine.embedding == pytest.approx(theirs, abs=1e-3)
    assert client.embeddings.create(model="tiny", input="the stone", dimensions=64).data
    with pytest.raises(openai.BadRequestError, match="64 dimensions"):
        client.embeddings.create(model="tiny", input="the stone", dimensions=8)
    with pytest.raises(openai.BadRequestError, match="no such token"):
        client.embeddings.create(model="tiny", input=[[10**6]])


def test_many_texts_come_back_in_their_order(client):
    texts = [f"stone {'and ' * (number % 7)}" for number in range(150)]
    found = client.embeddings.create(model="tiny", input=texts, encoding_format="float").data
    again = client.embeddings.create(model="tiny", input=texts[::-1], encoding_format="float").data
    assert len(found) == 150
    for mine, theirs in zip(found, again[::-1], strict=True):
        assert mine.embedding == pytest.approx(theirs.embedding, abs=1e-3)


# Settings -----------------------------------------------------------------------------------------


def test_slots_context_and_threads_reach_the_engine(base):
    with serving(model=base, slots=3, ctx=256, threads=1) as server, server.openai() as client:
        assert said(client)
        ((_, served),) = server.state.engines._served.items()
        asked = served.engine.settings
        assert (asked.slots, asked.ctx, asked.threads) == (3, 256, 1)
        with pytest.raises(openai.BadRequestError, match="holds 256"):
            client.chat.completions.create(model=base, messages=[{"role": "user", "content": "the " * 300}])
        with_no_model = httpx.post(
            server.url + "/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1}
        )
        assert with_no_model.json()["model"] == base


def test_an_external_server_can_stand_in(base, files, monkeypatch):
    with Engine(files / "tiny.gguf", slots=2) as engine:
        answer = engine.chat(HELLO, temperature=0.0, ignore_eos=True, max_tokens=12)
        process = engine.borrow_started()
        key = process.headers["Authorization"].removeprefix("Bearer ")
        monkeypatch.setenv("NIGHTSCHOOL_ENGINE", process.address.replace("://", f"://x:{key}@"))
        with serving(model=base) as server, server.openai() as client:
            assert said(client) == answer
            assert "".join(c.choices[0].delta.content or "" for c in ask(client, stream=True)) == answer
        engine.release(process)
