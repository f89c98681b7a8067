"""/v1/chat/completions as the real openai client sees it, held against the engine itself."""

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny

from nightschool.answer import Citation, cited
from nightschool.engine import Engine
from nightschool.hub import find_base, register
from nightschool.library import remember
from nightschool.paths import write_text
from nightschool.server.citing import Citing
from nightschool.store import open_store

pytestmark = pytest.mark.one_server

HELLO = [{"role": "user", "content": "Hello there"}]
LONG = {"ignore_eos": True}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"$ref": "#/$defs/days"},
            },
            "required": ["city", "days"],
            "$defs": {"days": {"enum": [1, 2, 7]}},
        },
    },
}
NOTES = "# Boats\n\nThe key of the boathouse hangs behind the clock. Mira Holt mends the sails in March.\n"


@pytest.fixture(scope="module")
def engine(module_home) -> Iterator[Engine]:
    """What the server's answers are held against."""
    with Engine(find_base("ember").path) as engine:
        yield engine


def ask(client, **changes):
    return client.chat.completions.create(
        **({"model": "ember", "messages": HELLO, "max_tokens": 20} | changes)
    )


def pieces(stream):
    return [choice.delta.content for chunk in stream for choice in chunk.choices if choice.delta.content]


# Answers ------------------------------------------------------------------------------------------


def test_an_answer_is_the_engines_own_whole_and_as_a_stream(client, engine):
    expected = engine.chat(HELLO, temperature=0.0, max_tokens=20)
    whole = ask(client, temperature=0)
    assert whole.choices[0].message.content == expected and whole.object == "chat.completion"
    streamed = pieces(ask(client, temperature=0, stream=True))
    assert "".join(streamed) == expected and len(streamed) > 3


def test_the_model_goes_by_the_clients_name_and_no_path_is_told(server):
    body = {"model": "ember", "messages": HELLO, "max_tokens": 5}
    for stream in (False, True):
        answer = httpx.post(server.url + "/v1/chat/completions", json=body | {"stream": stream})
        assert ".gguf" not in answer.text and '"model":"ember"' in answer.text.replace(": ", ":")


def test_a_stream_tells_its_usage_when_asked_and_only_then(client):
    told = list(
        ask(client, stream=True, stream_options={"include_usage": True}, max_tokens=5, extra_body=LONG)
    )
    assert told[-1].usage.completion_tokens == 5 and told[-1].choices == []
    assert not any(chunk.usage for chunk in ask(client, stream=True, max_tokens=5))


def test_max_completion_tokens_and_stop_end_an_answer(client, engine):
    whole = engine.chat(HELLO, temperature=0.0, max_tokens=20)
    short = client.chat.completions.create(
        model="ember", messages=HELLO, temperature=0, max_completion_tokens=3, extra_body=LONG
    )
    assert short.usage.completion_tokens == 3 and short.choices[0].finish_reason == "length"
    stop = whole[4:7]
    assert ask(client, temperature=0, stop=stop).choices[0].message.content == whole[: whole.index(stop)]


def test_there_may_be_more_choices_than_slots_each_with_a_seed_of_its_own(client):
    several = ask(client, n=6, seed=3, temperature=1.2, extra_body=LONG)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [*range(6)] and len(set(texts)) > 3
    assert several.usage.completion_tokens == 120
    streamed = [""] * 6
    for chunk in ask(client, n=6, seed=3, temperature=1.2, stream=True, extra_body=LONG):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert all(streamed) and len(set(streamed)) > 3


def test_a_seed_repeats_an_answer(client):
    first, again, other = (ask(client, seed=seed, temperature=1.5, extra_body=LONG) for seed in (5, 5, 6))
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].message.content != other.choices[0].message.content


def test_log_probabilities_are_the_engines(client, engine):
    told = ask(client, temperature=0, logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    prompt = engine.apply_template(HELLO)
    expected = engine.complete(prompt, temperature=0.0, max_tokens=4, n_probs=3)["completion_probabilities"]
    assert [each.token for each in told] == [each["token"] for each in expected]
    assert [each.logprob for each in told] == pytest.approx([each["logprob"] for each in expected], abs=1e-3)
    assert [len(each.top_logprobs) for each in told] == [3] * 4
    bare = ask(client, temperature=0, logprobs=True, max_tokens=4).choices[0].logprobs.content
    assert [each.logprob for each in bare] == pytest.approx([each.logprob for each in told], abs=1e-3)
    assert not any(each.top_logprobs for each in bare)
    streamed = [
        each.logprob
        for chunk in ask(client, temperature=0, logprobs=True, max_tokens=4, stream=True)
        for each in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert streamed == pytest.approx([each.logprob for each in told], abs=1e-3)


# Formats and tools --------------------------------------------------------------------------------


def test_a_schema_holds_the_answer(client):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "many": {"type": "boolean"}},
        "required": ["colour", "many"],
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for stream in (False, True):
        said = ask(client, response_format=wanted, stream=stream, max_tokens=60)
        found = json.loads("".join(pieces(said)) if stream else said.choices[0].message.content)
        assert found["colour"] in ("red", "blue") and isinstance(found["many"], bool)


def test_what_a_grammar_cannot_hold_is_refused_when_strict_and_left_out_otherwise(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    with pytest.raises(openai.BadRequestError, match="'minimum', which cannot be enforced"):
        ask(client, response_format=wanted)
    wanted["json_schema"]["strict"] = False
    assert "n" in json.loads(ask(client, response_format=wanted, max_tokens=60).choices[0].message.content)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_required_tool_is_called_with_arguments_that_fit(client, choice):
    other = {"type": "function", "function": {"name": "other"}}
    tools = [WEATHER, other] if isinstance(choice, dict) else [WEATHER]
    answer = ask(client, tools=tools, tool_choice=choice, max_tokens=100).choices[0]
    call = answer.message.tool_calls[0]
    assert answer.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["days"] in (1, 2, 7)
    streamed = [
        call
        for chunk in ask(client, tools=tools, tool_choice=choice, max_tokens=100, stream=True)
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert [each.index for each in streamed] == [0] and "city" in json.loads(streamed[0].function.arguments)


def test_the_result_of_a_call_can_be_handed_back(client):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turns = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    assert ask(client, messages=turns).choices[0].message.content
    with_tools = ask(client, messages=turns, tools=[WEATHER], tool_choice="required", max_tokens=100)
    assert with_tools.choices[0].message.tool_calls


def test_tools_reach_a_template_that_knows_them_and_a_named_one_does_not_end_the_engine(client, tmp_path):
    template = (
        "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}{% for message in messages %}"
        "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}<|assistant|>\n"
    )
    base = write_tiny(tmp_path / "tooled.gguf", "qwen2", template=template, context=2048)
    register(base, "tooled")
    without = ask(client, model="tooled", max_tokens=2)
    with_tools = ask(client, model="tooled", max_tokens=2, tools=[WEATHER])
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 20
    named = {"type": "function", "function": {"name": "weather"}}
    call = ask(client, model="tooled", tools=[WEATHER], tool_choice=named, max_tokens=200).choices[0]
    assert call.message.tool_calls[0].function.name == "weather"


def test_a_tool_that_is_not_offered_cannot_be_chosen(client):
    with pytest.raises(openai.BadRequestError, match="names no tool that is offered"):
        ask(client, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "x"}})


# Refusals -----------------------------------------------------------------------------------------


def test_openais_harmless_fields_are_taken_and_unknown_ones_refused_by_name(client):
    ask(client, user="me", store=False, metadata={"a": "b"}, service_tier="auto", max_tokens=1)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, extra_body={"n_discard": -1})
    assert caught.value.body == {
        "message": "Unknown parameter: 'n_discard'.",
        "type": "invalid_request_error",
        "param": "n_discard",
        "code": "unknown_parameter",
    }


def test_images_are_refused_and_never_fetched(client):
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    with pytest.raises(openai.BadRequestError, match="text only"):
        ask(client, messages=[{"role": "user", "content": [part]}])


def test_parts_of_text_are_joined(client, engine):
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    answer = ask(client, messages=[{"role": "user", "content": parts}], temperature=0)
    joined = [{"role": "user", "content": "Hello\nthere"}]
    assert answer.choices[0].message.content == engine.chat(joined, temperature=0.0, max_tokens=20)


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ({"model": "ember+nobody"}, openai.NotFoundError, "model_not_found"),
        ({"model": "/etc/passwd"}, openai.NotFoundError, "model_not_found"),
        (
            {"messages": [{"role": "user", "content": "x " * 700}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        ({"messages": []}, openai.BadRequestError, "invalid_value"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_each_refusal_has_its_status_and_code(client, changes, kind, code):
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            ask(client, stream=stream, **changes)
        assert caught.value.code == code


# The other dialects -------------------------------------------------------------------------------


def test_responses_answer_as_chats_do(client, engine):
    expected = engine.chat(HELLO, temperature=0.0, max_tokens=20)
    answer = client.responses.create(model="ember", input="Hello there", temperature=0, max_output_tokens=20)
    assert answer.output_text == expected and answer.model == "ember"
    turns = [{"role": "user", "content": [{"type": "input_text", "text": "Hello there"}]}]
    events = client.responses.create(
        model="ember", input=turns, temperature=0, max_output_tokens=20, stream=True
    )
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == expected


def test_messages_answer_as_chats_do(server, engine):
    body = {"model": "ember", "max_tokens": 20, "temperature": 0, "messages": HELLO}
    answer = httpx.post(server.url + "/v1/messages", json=body).json()
    assert answer["content"][0]["text"] == engine.chat(HELLO, temperature=0.0, max_tokens=20)
    counted = httpx.post(server.url + "/v1/messages/count_tokens", json={"messages": HELLO}).json()
    prompt = engine.apply_template(HELLO)
    assert counted == {"input_tokens": len(engine.tokenize(prompt, add_special=True))}


# Memory -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remembered(module_home, tmp_path_factory):
    """A note in the home's memory."""
    note = tmp_path_factory.mktemp("notes") / "boats.md"
    note.write_text(NOTES)
    db = open_store()
    for _ in remember(db, [note]):
        pass
    db.close()


QUESTION = [{"role": "user", "content": "Where does the key of the boathouse hang?"}]


def test_a_small_base_quotes_what_is_remembered_and_says_where_it_stands(client, remembered):
    by_name = ask(client, model="ember:memory", messages=QUESTION).choices[0].message
    by_field = ask(client, messages=QUESTION, extra_body={"nightschool": {"memory": True}}).choices[0].message
    for message in (by_name, by_field):
        assert "behind the clock" in message.content
        (citation,) = message.model_dump()["annotations"]
        assert citation["filename"].endswith("boats.md") and "Mira Holt" in citation["quote"]
        assert message.content[citation["start_index"] : citation["end_index"]] == "[1]"
    chunks = list(ask(client, model="ember:memory", messages=QUESTION, stream=True))
    assert "".join(pieces(chunks)) == by_name.content
    noted = [
        each for chunk in chunks for each in chunk.choices[0].delta.model_dump().get("annotations") or []
    ]
    assert noted == by_name.model_dump(exclude_none=True)["annotations"]


def test_a_quotation_is_every_choice_and_takes_no_other_form(client, remembered):
    asked = {"model": "ember:memory", "messages": QUESTION}
    whole = ask(client, **asked, n=2)
    assert ["behind the clock" in each.message.content for each in whole.choices] == [True, True]
    said = ["", ""]
    for chunk in ask(client, **asked, n=2, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == [each.message.content for each in whole.choices]
    with pytest.raises(openai.BadRequestError, match="word for word"):
        ask(client, **asked, response_format={"type": "json_object"})


def test_what_no_note_says_is_not_known(client, remembered):
    asked = [{"role": "user", "content": "What is the capital of Peru?"}]
    assert ask(client, model="ember:memory", messages=asked).choices[0].message.content == "I do not know."


def test_a_base_that_can_read_gets_the_notes_and_its_answer_cites_them(client, remembered, tmp_path):
    base = write_tiny(tmp_path / "reader.gguf", "llama3", context=2048)
    write_text(tmp_path / "card.json", '{"reads_notes": true}')
    register(base, "reader")
    plain = ask(client, model="reader", messages=QUESTION, extra_body=LONG)
    answer = ask(client, model="reader:memory", messages=QUESTION, temperature=0, extra_body=LONG)
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens + 50
    assert answer.choices[0].message.content.endswith(" [1]")
    (citation,) = answer.choices[0].message.model_dump()["annotations"]
    assert citation["number"] == 1 and "behind the clock" in citation["quote"]
    chunks = ask(
        client, model="reader:memory", messages=QUESTION, temperature=0, stream=True, extra_body=LONG
    )
    assert "".join(pieces(chunks)) == answer.choices[0].message.content


def test_memory_needs_a_question(client):
    with pytest.raises(openai.BadRequestError, match="must be the user's question"):
        ask(client, model="ember:memory", messages=[*HELLO, {"role": "assistant", "content": "Yes"}])


CITATIONS = [
    Citation(1, "a.md", "", "the key hangs behind the clock"),
    Citation(2, "b.md", "", "sails in March"),
]


@given(
    said=st.sampled_from(
        [
            "Behind the clock [1], and in March [2].",
            "Behind the clock [7].",
            "The key [hangs] behind the [12] clock",
            "I do not know.",
            "[",
            "sails in March",
            "",
        ]
    ),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_citing_is_the_same_however_an_answer_is_cut_into_pieces(said, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut < len(said)), len(said)]
    citing = Citing(CITATIONS)
    streamed = "".join(citing.piece(said[a:b]) for a, b in zip(edges, edges[1:], strict=False))
    ending = citing.end()
    at_once = Citing(CITATIONS)
    whole = at_once.piece(said) + at_once.end().text
    assert streamed + ending.text == whole
    expected = cited(said, CITATIONS)
    if expected.known:
        assert whole.strip() == expected.text
        assert [each["number"] for each in ending.fields["annotations"]] == [
            citation.number for citation in expected.citations
        ]
    else:
        assert ending.fields["annotations"] == []
