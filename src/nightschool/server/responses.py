"""What llama.cpp leaves out of /v1/responses, filled in: OpenAI's clients cannot do without.

They put a stream together by `output_index` and `content_index`, and each response says again what was asked.
It does not know what else is said.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]

# Events about a part of an item; llama.cpp's items have one part.
OF_PARTS = ("response.output_text.", "response.content_part.", "response.reasoning_text.")
NO_MARKS: Json = {"annotations": [], "logprobs": []}


class Completing:
    """Completes one response, whole or as its events come (relay.Rewriting).

    `asked` is what each response object says again; `context` is how many tokens the model holds.
    """

    def __init__(self, asked: Mapping[str, Any], *, context: int) -> None:
        self._asked = dict(asked)
        self._max_tokens: int | None = asked["max_output_tokens"]
        self._context = context
        self._created_at = int(time.time())
        self._items: list[str] = []  # the ids of the output's items, in their order
        self._count = 0

    def whole(self, content: bytes) -> bytes:
        """The response as one object."""
        return json.dumps(self._response(json.loads(content))).encode()

    def events(self, piece: bytes) -> bytes:
        """Whole events of a stream."""
        return b"".join(self._event(raw) for raw in piece.split(b"\n\n") if raw)

    def _event(self, raw: bytes) -> bytes:
        data = next((line[6:] for line in raw.split(b"\n") if line.startswith(b"data: {")), b"{}")
        event = json.loads(data)
        if "type" not in event:  # an error's
            return raw + b"\n\n"
        return b"".join(self._numbered(each) for each in self._completed(event))

    def _numbered(self, event: Json) -> bytes:
        body = json.dumps(event | {"sequence_number": self._count}, separators=(",", ":"))
        self._count += 1
        return f"event: {event['type']}\ndata: {body}\n\n".encode()

    def _completed(self, event: Json) -> Iterator[Json]:
        kind = event["type"]
        if "response" in event:
            response = self._response(event["response"])
            ended = kind == "response.completed"
            yield {**event, "type": f"response.{response['status']}" if ended else kind, "response": response}
            return
        item = _item(event["item"]) if "item" in event else None
        id = item["id"] if item else event.get("item_id", "")
        if id not in self._items:
            self._items.append(id)
        found = {**event, "output_index": self._items.index(id)}
        if kind.startswith(OF_PARTS):
            found["content_index"] = 0
        if kind.startswith("response.output_text."):
            found["logprobs"] = []
        if "part" in event:
            found["part"] = NO_MARKS | event["part"]
        if item:
            found["item"] = item
        if item and kind == "response.output_item.done" and item["type"] == "function_call":
            said = {"item_id": id, "name": item["name"], "arguments": item["arguments"]}
            index = found["output_index"]
            yield {"type": "response.function_call_arguments.done", "output_index": index, **said}
        yield found

    def _response(self, said: Json) -> Json:
        output = [_item(each) for each in said.get("output", [])]
        usage = _usage(said["usage"]) if "usage" in said else None
        found = {"created_at": self._created_at, **said, **self._asked, "output": output, "usage": usage}
        if usage and self._is_cut_off(usage):
            found |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        return found

    def _is_cut_off(self, usage: Json) -> bool:
        """llama.cpp does not say: an answer whose last allowed token is its end counts as cut off too."""
        is_full: bool = usage["total_tokens"] >= self._context
        return is_full or (self._max_tokens is not None and usage["output_tokens"] >= self._max_tokens)


def _item(item: Json) -> Json:
    """An item of the output; calls have an id as all others do, by which their events name them."""
    return {"id": item.get("call_id", ""), **item}


def _usage(said: Json) -> Json:
    """What was used; thoughts are counted with the rest."""
    read = {"cached_tokens": 0, "cache_write_tokens": 0, **said.get("input_tokens_details", {})}
    written = {"reasoning_tokens": 0, **said.get("output_tokens_details", {})}
    return {**said, "input_tokens_details": read, "output_tokens_details": written}
