"""/v1/responses: all that OpenAI's clients read is there, held against the client's own types."""

import json

import pytest
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseStreamEvent
from pydantic import TypeAdapter

from nightschool.server.responses import Completing

pytestmark = pytest.mark.one_server

EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
ASKED = {
    "model": "ember",
    "max_output_tokens": None,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
QUESTION = {"model": "ember", "input": "What is a boat?", "temperature": 0}


def completed(events):
    """llama.cpp's events, completed and read as the client's types."""
    sent = b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events)
    said = Completing(ASKED, context=512).events(sent).decode()
    return [EVENT.validate_json(line[6:]) for line in said.splitlines() if line.startswith("data: ")]


def test_a_response_has_all_that_the_clients_type_requires(client):
    answer = client.responses.create(**QUESTION, instructions="Be brief.")
    Response.model_validate(answer.to_dict())
    assert answer.status == "completed" and answer.incomplete_details is None
    assert answer.instructions == "Be brief." and answer.tools == [] and answer.temperature == 0


def test_so_has_every_event_of_a_stream_and_they_are_numbered(client):
    events = list(client.responses.create(**QUESTION, stream=True))
    for each in events:
        EVENT.validate_python(each.to_dict())
    assert [each.sequence_number for each in events] == [*range(len(events))]
    assert events[0].response.status == "in_progress" and events[-1].type == "response.completed"


def test_the_clients_helper_puts_a_stream_together(client):
    whole = client.responses.create(**QUESTION).output_text
    with client.responses.stream(**QUESTION) as stream:
        snapshots = [each.snapshot for each in stream if each.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == whole
    assert snapshots[-1] == whole


def test_an_answer_that_was_cut_off_says_so(client):
    short = QUESTION | {"max_output_tokens": 2}
    answer = client.responses.create(**short)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    *_, last = client.responses.create(**short, stream=True)
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")
    endless = {"type": "array", "items": {"type": "boolean"}, "minItems": 400}
    full = client.responses.create(
        **QUESTION, text={"format": {"type": "json_schema", "name": "x", "schema": endless}}
    )
    assert full.status == "incomplete" and full.usage.total_tokens == 1024


def test_thoughts_and_calls_have_their_places_in_the_output():
    """As llama.cpp sends them; ember has neither."""
    call = {"type": "function_call", "call_id": "fc_1", "name": "weather"}
    events = completed(
        [
            {
                "type": "response.output_item.added",
                "item": {"id": "rs_1", "type": "reasoning", "summary": [], "content": []},
            },
            {"type": "response.reasoning_text.delta", "item_id": "rs_1", "delta": "Hm."},
            {"type": "response.output_item.added", "item": call | {"arguments": "", "status": "in_progress"}},
            {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": "{}"},
            {"type": "response.output_item.done", "item": call | {"arguments": "{}", "status": "completed"}},
        ]
    )
    assert [each.output_index for each in events] == [0, 0, 1, 1, 1, 1]
    arguments, done = events[-2:]
    assert (arguments.type, arguments.arguments) == ("response.function_call_arguments.done", "{}")
    assert isinstance(done.item, ResponseFunctionToolCall) and done.item.id == "fc_1"


def test_an_error_in_a_stream_is_handed_on_as_it_is():
    said = b'data: {"error":{"message":"no"}}\n\n'
    assert Completing(ASKED, context=512).events(said) == said
