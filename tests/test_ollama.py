"""Ollama's API through Ollama's own Python client."""

import json

import httpx
import ollama
import pytest
from tiny import write_tiny, write_tiny_adapter

from nightschool.hub import register
from nightschool.server.ollama import KNOWN

ASK = [{"role": "user", "content": "What is a boat?"}]
GREEDY = {"temperature": 0, "num_predict": 24}


@pytest.fixture
def client(server):
    with ollama.Client(server.url) as client:
        yield client


def test_a_chat_streams_what_it_answers_whole_and_what_openais_api_answers(server, client):
    whole = client.chat("ember:latest", ASK, options=GREEDY)
    assert whole.message.role == "assistant"
    assert whole.done
    assert whole.done_reason == "stop"
    assert whole.eval_count > 1
    assert whole.prompt_eval_count > 1
    assert 0 < whole.eval_duration + whole.prompt_eval_duration <= whole.total_duration
    pieces = list(client.chat("ember", ASK, options=GREEDY, stream=True))
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == whole.eval_count
    with server.openai() as other:
        said = other.chat.completions.create(
            model="ember", messages=ASK, temperature=0, max_completion_tokens=24
        )
    assert said.choices[0].message.content == whole.message.content
    assert said.usage.completion_tokens == whole.eval_count


def test_a_prompt_is_answered_like_a_chat_and_a_raw_one_is_gone_on_with(server, client):
    chatted = client.chat("ember", ASK, options=GREEDY)
    said = client.generate("ember", ASK[0]["content"], options=GREEDY)
    assert said.response == chatted.message.content
    assert said.context is None
    raw = client.generate("ember", "Once upon a time", raw=True, options=GREEDY)
    with server.openai() as other:
        expected = other.post(
            "/completions",
            body={"model": "ember", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 24},
            cast_to=httpx.Response,
        ).json()["choices"][0]
    assert raw.response == expected["text"]
    assert raw.done_reason == expected["finish_reason"] == "length"
    streamed = client.generate("ember", "Once upon a time", raw=True, options=GREEDY, stream=True)
    assert "".join(piece.response for piece in streamed) == raw.response
    system = client.generate("ember", "What is a boat?", system="Answer in one word.", options=GREEDY)
    assert system.prompt_eval_count > said.prompt_eval_count


def test_options_are_obeyed_and_unknown_ones_passed_over(client):
    def say(**options):
        return client.chat("ember", ASK, options=options)

    assert say(temperature=0, num_predict=3).eval_count == 3
    assert say(temperature=0, num_predict=3).done_reason == "length"
    long = say(**GREEDY).message.content
    cut = say(**GREEDY, stop=[long.split()[1]]).message.content
    assert cut.strip() == long.split()[0]
    wild = {"temperature": 9.0, "num_predict": 24, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert say(**wild, seed=1).message.content == say(**wild, seed=1).message.content
    assert say(**wild, seed=1).message.content != say(**wild, seed=2).message.content
    narrow = wild | {"top_p": 0.0}
    assert say(**narrow, seed=1).message.content == say(**narrow, seed=2).message.content
    assert say(**GREEDY, num_gpu=99, mirostat=2, num_ctx=64).message.content == long


def test_formats_hold_the_answer(client):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "maximum": 99}},
        "required": ["colour", "count"],
    }
    said = json.loads(client.chat("ember", ASK, format=schema, options={"temperature": 0}).message.content)
    assert said["colour"] in ("red", "blue")
    assert isinstance(said["count"], int)
    free = client.generate("ember", "Say it.", format="json", options={"temperature": 0, "num_predict": 200})
    if free.done_reason == "stop":
        assert isinstance(json.loads(free.response), dict)
    assert free.response.lstrip().startswith("{")


def test_a_stack_answers_under_its_name(client, tmp_path):
    from nightschool.paths import adapters_dir

    base = register(write_tiny(tmp_path / "tiny.gguf", "qwen2"), "tiny")
    (adapters_dir() / "loud").mkdir(parents=True)
    write_tiny_adapter(adapters_dir() / "loud" / "adapter.gguf", base.path, gain=4.0)
    card = {"base": {"name": "tiny"}}
    (adapters_dir() / "loud" / "card.json").write_text(json.dumps(card))
    listed = [model.model for model in client.list().models]
    assert listed == ["ember:latest", "tiny:latest", "tiny+loud:latest"]
    bare = client.generate("tiny", "the", raw=True, options=GREEDY).response
    loud = client.generate("tiny+loud:latest", "the", raw=True, options=GREEDY)
    assert loud.model == "tiny+loud:latest"
    assert loud.response != bare
    assert client.generate("tiny+loud@0", "the", raw=True, options=GREEDY).response == bare
    assert {model.model for model in client.ps().models} == {"tiny:latest"}


def test_what_is_here_is_listed_and_described_without_paths(client, server, home):
    (model,) = client.list().models
    assert model.model == "ember:latest"
    assert (model.details.family, model.details.quantization_level) == ("llama", "Q8_0")
    assert model.details.parameter_size == "8.0M"
    assert model.size > 1_000_000
    assert len(model.digest) == 64
    shown = client.show("ember")
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo["llama.block_count"] == 8
    assert "{%" in shown.template
    assert httpx.get(server.url + "/api/version").json()["version"].count(".") == 2
    client.generate("ember", "")  # loads it
    assert [model.model for model in client.ps().models] == ["ember:latest"]
    for path in ("tags", "ps"):
        assert str(home) not in httpx.get(f"{server.url}/api/{path}").text


def test_vectors_are_those_of_openais_api(server, client):
    texts = ["The boat is red.", "A tree stands there."]
    found = client.embed("ember", texts)
    with server.openai() as other:
        expected = other.embeddings.create(model="ember", input=texts, encoding_format="float")
    near = {"rel": 1e-4, "abs": 1e-6}
    for vector, other in zip(found.embeddings, expected.data, strict=True):
        assert list(vector) == pytest.approx(other.embedding, **near)
    assert found.prompt_eval_count == expected.usage.prompt_tokens
    older = client.embeddings("ember", texts[0]).embedding
    assert list(older) == pytest.approx(expected.data[0].embedding, **near)
    assert len(client.embed("ember", "A tree. " * 2000).embeddings) == 1
    with pytest.raises(ollama.ResponseError):
        client.embed("ember", "A tree. " * 2000, truncate=False)


def test_memory_is_looked_up_under_the_models_name_with_memory(server, client):
    note = {"text": "The boathouse key is under the third pot."}
    httpx.post(server.url + "/v1/nightschool/sources", json=note).raise_for_status()
    said = client.chat("ember:memory", [{"role": "user", "content": "Where is the boathouse key?"}])
    assert said.message.content == "“The boathouse key is under the third pot.” [1]"


def test_tools_come_back_as_calls_where_the_base_can(client, tmp_path):
    (tmp_path / "able").mkdir()
    (tmp_path / "able" / "card.json").write_text('{"reads_notes": true}')
    register(write_tiny(tmp_path / "able" / "tiny.gguf", "qwen2"), "able")

    def weather(city: str) -> str:
        """Say what the weather is like.

        Args:
            city: where
        """
        return city

    said = client.chat("able", ASK, tools=[weather], options=GREEDY)
    for call in said.message.tool_calls or []:
        assert call.function.name == "weather"
    call = {"function": {"name": "weather", "arguments": {"city": "Brill"}}}
    turns = [*ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "Rain."}]
    assert client.chat("able", turns, tools=[weather], options=GREEDY).done


def test_what_is_not_offered_is_refused_in_ollamas_words(server, client):
    for status, refused in (
        (404, lambda: client.chat("nothing", ASK)),
        (404, lambda: client.show("nothing")),
        (400, lambda: client.generate("ember", "x", suffix="y")),
        (400, lambda: client.chat("ember", [{"role": "user", "content": "x", "images": [b"1234"]}])),
        (400, lambda: client.chat("ember", ASK, options={"temperature": -3})),
        (405, lambda: client.pull("gemma3")),
        (405, lambda: client.delete("ember")),
        (405, lambda: client.copy("ember", "other")),
        (405, lambda: client.create("mine", from_="ember")),
    ):
        with pytest.raises(ollama.ResponseError) as error:
            refused()
        assert error.value.status_code == status
        assert error.value.error.endswith(".") or "greater" in error.value.error
        assert "{" not in error.value.error
    for method in ("PUT", "DELETE", "PATCH"):
        for path in KNOWN:
            response = httpx.request(method, f"{server.url}/api/{path}")
            assert response.status_code == 405, path
            assert isinstance(response.json()["error"], str)
    missing = httpx.get(server.url + "/api/experimental/web_search")
    assert (missing.status_code, list(missing.json())) == (404, ["error"])


def test_what_is_refused_before_it_is_read_is_said_in_ollamas_words_too(server):
    plain, unreadable = {"Content-Type": "text/plain"}, {"Content-Type": "application/json"}
    for status, content, headers in (
        (415, b"{}", plain),
        (403, b"{}", unreadable | {"Origin": "https://elsewhere.example"}),
        (403, b"{}", unreadable | {"Host": "elsewhere.example"}),
        (400, b'{"model": "\xe9"}', unreadable),
    ):
        answer = httpx.post(server.url + "/api/chat", content=content, headers=headers)
        assert answer.status_code == status
        assert answer.json()["error"].endswith(".")


def test_a_failure_in_the_midst_of_an_answer_is_its_last_line(client):
    with pytest.raises(ollama.ResponseError, match="context|tokens"):
        list(client.chat("ember", [{"role": "user", "content": "tree " * 3000}], stream=True))
