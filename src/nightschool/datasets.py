"""Files of examples → conversations: OpenAI chat, Alpaca, ShareGPT, prompt/answer pairs, CSV, plain text.

A file's format is recognised by what is in it; its name only breaks ties. A file is taken whole or not
at all: everything that cannot be used is listed with its place and reason in one DataError, before
anything else happens. Knows nothing of tokens, templates or models.

Formats: OpenAI's fine-tuning guide (`messages`, per-message `weight` 0 or 1); Stanford Alpaca's README
(`instruction`, `input`, `output`); FastChat's data (`conversations` of `from` and `value`).
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nightschool.errors import DataError, FileFormatError, NotFound

FORMATS = ("chat", "alpaca", "sharegpt", "pairs", "text")
SHOWN = 20  # problems listed before the rest is only counted
LINE_LIMIT = 16 * 2**20  # bytes of one JSON line; longer ones are a file in the wrong format
LINES_LIMIT = 1_000_000  # examples in a file that comes over the network
PIECE_LIMIT = 8_000  # characters of one piece of a plain text
DOCUMENT = "document"  # the role of a piece of plain text, all of which is learned

ROLES = {"developer": "system"}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
PAIRS = (("prompt", "completion"), ("question", "answer"), ("prompt", "response"), ("input", "output"))
ANSWERS = ("output", "response", "completion")  # what files in Alpaca's form call the answer


@dataclass(frozen=True)
class Message:
    """One turn; role is system, user, assistant or document; weight 0 keeps a turn from being learned."""

    role: str
    content: str
    weight: float = 1.0


@dataclass(frozen=True)
class Conversation:
    """An example: turns in order, or one document; `instruction` keeps Alpaca's two fields apart."""

    messages: tuple[Message, ...]
    instruction: tuple[str, str] | None = None

    @property
    def is_document(self) -> bool:
        """Whether this is a piece of plain text rather than turns."""
        return self.messages[0].role == DOCUMENT


class BadExample(Exception):
    """Why one example cannot be used; collected into a DataError, never seen outside."""


@dataclass(frozen=True)
class Record:
    """One example as it lies in the file: where, and either its fields or the reason there are none."""

    place: str
    fields: Any = None
    problem: str | None = None


def load_dataset(
    path: Path, *, format: str | None = None, columns: Mapping[str, str] | None = None
) -> list[Conversation]:
    """Read a file of examples.

    Args:
        format: one of FORMATS when it shall not be guessed.
        columns: for CSV or JSON with names of their own: which column is `prompt`, `completion`, `system`.
    Raises:
        NotFound, FileFormatError: no such file, or none that we know.
        DataError: all examples that cannot be used, by line (JSON arrays: by number) and reason.
    """
    if format not in (None, *FORMATS):
        raise ValueError(f"unknown format {format!r}: one of {', '.join(FORMATS)}")
    text = read_text(path)
    if format == "text":
        return documents(text)
    records = read_records(text, path, must=bool(format or columns))
    if records is None:
        return documents(text)
    if columns:
        records = [renamed(record, columns) for record in records]
        format = format or "pairs"
    format = format or recognise(records, path)
    return parse_all(records, PARSERS[format], path)


def check_lines(file: BinaryIO, name: str) -> int:
    """Read JSON lines of OpenAI's form one at a time and keep none; how many examples there are.

    Raises DataError with all that cannot be used; memory does not grow with the file.
    """
    problems, count, number = [], 0, 0
    while line := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            problems.append(
                f"line {number}: is longer than {LINE_LIMIT // 2**20} MB; no further line was read"
            )
            break
        if not line.strip(b" \t\r\n\xef\xbb\xbf"):
            continue
        count += 1
        if count > LINES_LIMIT:
            problems.append(
                f"line {number}: is one more than the {LINES_LIMIT:,} examples that a file may hold"
            )
            break
        problem = line_problem(number, line)
        problems += [f"line {number}: {problem}"] if problem and len(problems) < LINES_LIMIT // 10 else []
    if problems:
        raise report(Path(name), problems, total=count)
    if not count:
        raise DataError(f"{name} holds no examples.")
    return count


def line_problem(number: int, line: bytes) -> str | None:
    """Why a line of JSON is no example in OpenAI's form; None where it is one."""
    try:
        record = json_line(number, line.decode("utf-8"))
    except UnicodeDecodeError:
        return "is not UTF-8; save the file as UTF-8"
    if record.problem:
        return record.problem
    if not isinstance(record.fields, dict):
        return "is not a JSON object"
    try:
        checked(parse_chat(record.fields))
    except BadExample as error:
        return str(error)
    return None


def parse_columns(text: str) -> dict[str, str]:
    """`prompt=Question,completion=Answer` → {"prompt": "Question", "completion": "Answer"}."""
    pairs = [part.partition("=") for part in text.split(",")]
    columns = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    if not {"prompt", "completion"} <= set(columns) <= {"prompt", "completion", "system"}:
        raise FileFormatError(
            f"The columns {text!r} are not of the form 'prompt=COLUMN,completion=COLUMN' "
            "(and ',system=COLUMN' if there is one)."
        )
    return columns


# Bytes → text


def read_text(path: Path) -> str:
    """The file as text without a byte-order mark; every line that is not UTF-8 is reported."""
    if not path.exists():
        raise NotFound(f"There is no file {str(path)!r}.")
    if not path.is_file():
        raise FileFormatError(f"{str(path)!r} is not a file. Name one file of examples.")
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileFormatError(f"{path.name} is UTF-16 text. Save it as UTF-8 and try again.")
    if raw.startswith((b"GGUF", b"PK\x03\x04", b"\x1f\x8b", b"%PDF", b"SQLite format 3")) or b"\0" in raw:
        raise FileFormatError(f"{path.name} is not a text file. Examples are JSON, JSONL, CSV or plain text.")
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise report(path, bad_bytes(raw), total=raw.count(b"\n") + 1, unit="lines") from None
    if not text.strip():
        raise FileFormatError(f"{path.name} is empty.")
    return text


def bad_bytes(raw: bytes) -> list[str]:
    problems = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            problems.append(f"line {number}: byte 0x{byte:02X} is not UTF-8; save the file as UTF-8")
    return problems


# Text → records


def read_records(text: str, path: Path, *, must: bool = False) -> list[Record] | None:
    """The examples of a JSON, JSONL or CSV file; None for plain text, unless it must be one of them."""
    start = text.lstrip()[:1]
    suffix = path.suffix.lower()
    if start in "[{":
        array = json_array(text)
        if array is not None:
            return array
        if start == "{" or suffix in (".json", ".jsonl", ".ndjson") or looks_like_json(text):
            return json_lines(text, path)
    if suffix in (".jsonl", ".ndjson"):
        return json_lines(text, path)
    if suffix == ".json":
        raise FileFormatError(f"{path.name} is not JSON: {json_error(text)}.")
    return csv_rows(text, path, must=must)


def json_array(text: str) -> list[Record] | None:
    """A JSON array of examples, or one JSON object; None when the whole text is not JSON."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    if not isinstance(value, list):
        return [Record("line 1", value)]
    return [Record(f"example {number}", item) for number, item in enumerate(value, 1)]


def parse_json(text: str) -> Any:
    """Python's json, with its recursion limit turned into the ValueError of all other mistakes."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_error(text: str) -> str:
    try:
        parse_json(text)
    except json.JSONDecodeError as error:
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    except ValueError as error:
        return str(error)
    return "nothing wrong"


def looks_like_json(text: str) -> bool:
    """Whether `[` begins an array of objects rather than a Markdown link or a heading in brackets."""
    return re.match(r"\s*\[\s*[{\]]", text) is not None


def json_lines(text: str, path: Path) -> list[Record]:
    """One JSON object a line; blank lines count but hold nothing."""
    if text.lstrip()[:1] == "[" and looks_like_json(text):
        raise FileFormatError(f"{path.name} is a JSON array with a mistake: {json_error(text)}.")
    return [
        json_line(number, line)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip(" \t\r\ufeff")
    ]


def json_line(number: int, line: str) -> Record:
    place = f"line {number}"
    if len(line) > LINE_LIMIT:
        return Record(place, problem=f"is longer than {LINE_LIMIT // 2**20} MB")
    try:
        return Record(place, parse_json(line.strip("\ufeff")))
    except json.JSONDecodeError as error:
        return Record(place, problem=f"is not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:
        return Record(place, problem=f"is not JSON: {error}")


def csv_rows(text: str, path: Path, *, must: bool) -> list[Record] | None:
    """The rows of a CSV file under a header we know (or `must` believe in); None for other text."""
    header = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    delimiter = max(",;\t", key=header.count)
    names = [name.strip().strip('"').strip().lower() for name in header.split(delimiter)]
    if not must and shape_of(dict.fromkeys(names, "")) in (None, "chat", "sharegpt"):
        if path.suffix.lower() not in (".csv", ".tsv"):
            return None
        raise FileFormatError(
            f"{path.name} has the columns {', '.join(names[:8])}; known are prompt and completion, question "
            "and answer, or instruction, input and output. Name yours: --columns prompt=…,completion=…"
        )
    return list(table(text, names, delimiter))


def table(text: str, names: list[str], delimiter: str) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    place, seen_header = "line 1", False
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader cannot find its way after a broken quote
            yield Record(place, problem=f"is not CSV: {error}")
            return
        if not any(cell.strip() for cell in row):
            continue
        if not seen_header:
            seen_header = True
        elif len(row) != len(names):
            yield Record(place, problem=f"has {len(row)} cells where the header has {len(names)}")
        else:
            yield Record(place, dict(zip(names, row, strict=True)))


def renamed(record: Record, columns: Mapping[str, str]) -> Record:
    """The record with the person's column names replaced by ours; CSV headers are in lower case already."""
    if not isinstance(record.fields, dict):
        return record
    found = {ours: theirs if theirs in record.fields else theirs.lower() for ours, theirs in columns.items()}
    missing = [name for name in found.values() if name not in record.fields]
    if missing:
        have = ", ".join(list(record.fields)[:8])
        return Record(record.place, problem=f"has no column {missing[0]!r} (it has {have})")
    return Record(record.place, {ours: record.fields[name] for ours, name in found.items()})


# Records → conversations


def shape_of(fields: Any) -> str | None:
    """Which format an example is in, by its names."""
    if not isinstance(fields, dict):
        return None
    if "messages" in fields:
        return "chat"
    if "conversations" in fields or "conversation" in fields:
        return "sharegpt"
    if "instruction" in fields and any(name in fields for name in ANSWERS):
        return "alpaca"
    if any(prompt in fields and answer in fields for prompt, answer in PAIRS):
        return "pairs"
    if isinstance(fields.get("text"), str):
        return "chat"
    return None


def recognise(records: list[Record], path: Path) -> str:
    """The format of the first example that has one; without any, what is there instead."""
    for record in records:
        shape = shape_of(record.fields)
        if shape:
            return shape
    broken = [f"{record.place}: {record.problem}" for record in records if record.problem]
    if broken:
        raise report(path, broken, total=len(records))
    names = next((list(record.fields) for record in records if isinstance(record.fields, dict)), [])
    found = f"it has {', '.join(map(repr, names[:8]))}" if names else "it holds no objects"
    raise FileFormatError(
        f"{path.name} is in no known format: {found}. Known are 'messages' (OpenAI), 'instruction' and "
        "'output' (Alpaca), 'conversations' (ShareGPT), 'prompt' and 'completion', 'question' and 'answer'."
    )


def parse_all(
    records: list[Record], parse: Callable[[Mapping[str, Any]], Conversation], path: Path
) -> list[Conversation]:
    """Every record as a conversation, or one DataError with all that cannot be."""
    conversations, problems = [], []
    for record in records:
        try:
            if record.problem:
                raise BadExample(record.problem)
            if not isinstance(record.fields, dict):
                raise BadExample("is not a JSON object")
            conversations.append(checked(parse(record.fields)))
        except BadExample as error:
            problems.append(f"{record.place}: {error}")
    if problems:
        raise report(path, problems, total=len(records))
    if not conversations:
        raise FileFormatError(f"{path.name} holds no examples.")
    return conversations


def report(path: Path, problems: list[str], *, total: int, unit: str = "examples") -> DataError:
    """All problems in one message: the first SHOWN in full, the rest counted."""
    lines = [f"{path.name}: {len(problems):,} of {total:,} {unit} cannot be used."]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN:,} more")
    return DataError("\n".join([*lines, "Mend or remove them, then try again."]))


def checked(conversation: Conversation) -> Conversation:
    """What holds for every format: text that can be encoded, turns in order, an answer to learn."""
    for message in conversation.messages:
        if "\0" in message.content:
            raise BadExample(f"has a NUL character in a {message.role} turn")
        if any("\ud800" <= char <= "\udfff" for char in message.content):
            raise BadExample(f"has half a surrogate pair in a {message.role} turn")
    if conversation.is_document:
        return conversation
    roles = [message.role for message in conversation.messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in turns:
        raise BadExample("has a system message that is not the first")
    if "assistant" not in turns:
        raise BadExample("has no assistant turn to learn from")
    for number, role in enumerate(turns):
        if role != ("user", "assistant")[number % 2]:
            raise BadExample("has its turns out of order: user and assistant take turns, user first")
    return conversation


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """A field that must be a string; absent or null is empty."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadExample(f"{name!r} is not a string")
    return value


def parse_chat(fields: Mapping[str, Any]) -> Conversation:
    """OpenAI's fine-tuning format; a line with nothing but a `text` is plain text, all of it learned."""
    messages = fields.get("messages")
    if messages is None and text_of(fields, "text").strip():
        return Conversation((Message(DOCUMENT, text_of(fields, "text")),))
    if not isinstance(messages, list) or not messages:
        raise BadExample(
            "has no list 'messages'" if "messages" not in fields else "'messages' is not a list of messages"
        )
    if fields.get("tools") or fields.get("functions"):
        raise BadExample("defines tools, which are not supported")
    return Conversation(tuple(chat_message(message, number) for number, message in enumerate(messages, 1)))


def chat_message(message: Any, number: int) -> Message:
    if not isinstance(message, dict):
        raise BadExample(f"message {number} is not an object")
    role = message.get("role")
    role = ROLES.get(role, role) if isinstance(role, str) else role
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise BadExample(f"message {number} calls a tool or answers for one, which is not supported")
    if role not in ("system", "user", "assistant"):
        raise BadExample(f"message {number} has the role {role!r}; known are system, user and assistant")
    content = chat_content(message.get("content"), number)
    if role == "assistant" and not content.strip():
        raise BadExample(f"message {number} is an empty assistant turn")
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise BadExample(f"message {number} has the weight {weight!r}; it must be 0 or 1")
    return Message(role, content, float(weight))


def chat_content(content: Any, number: int) -> str:
    """A string, or a list of text parts, joined as llama.cpp joins them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise BadExample(f"message {number} has no text content")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise BadExample(
                f"message {number} has a part of type {str(kind)[:40]!r}; only text is supported"
            )
    return "\n".join(part["text"] for part in content)


def parse_alpaca(fields: Mapping[str, Any]) -> Conversation:
    """Stanford Alpaca's format; an empty answer (the published file has 28) is kept but not learned."""
    answer_name = next((name for name in ANSWERS if name in fields), None)
    if "instruction" not in fields or answer_name is None:
        raise BadExample("has no 'instruction' and 'output'")
    instruction, context = text_of(fields, "instruction"), text_of(fields, "input")
    answer = text_of(fields, answer_name)
    parts = [part.strip() for part in (instruction, context) if part.strip()]
    if not parts:
        raise BadExample("has an empty instruction")
    turns = [Message("user", "\n\n".join(parts))]
    turns.append(Message("assistant", answer, weight=float(bool(answer.strip()))))
    if text_of(fields, "system").strip():
        turns.insert(0, Message("system", text_of(fields, "system")))
    return Conversation(tuple(turns), instruction=(instruction, context))


def parse_sharegpt(fields: Mapping[str, Any]) -> Conversation:
    """FastChat's format; as there, answers before the first question are left out, as are last questions."""
    turns = fields.get("conversations", fields.get("conversation"))
    if not isinstance(turns, list) or not turns:
        raise BadExample("has no list 'conversations'")
    messages = [sharegpt_turn(turn, number) for number, turn in enumerate(turns, 1)]
    system = [Message("system", text_of(fields, "system"))] if text_of(fields, "system").strip() else []
    while messages and messages[0].role == "system":
        system = [messages.pop(0)]
    while messages and messages[0].role == "assistant":
        messages.pop(0)
    while messages and messages[-1].role == "user":
        messages.pop()
    return Conversation((*system, *messages))


def sharegpt_turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict):
        raise BadExample(f"turn {number} is not an object")
    speaker = turn.get("from", turn.get("role"))
    role = SHAREGPT_ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise BadExample(f"turn {number} is from {str(speaker)[:40]!r}; known are human, gpt and system")
    content = text_of(turn, "value" if "value" in turn else "content")
    if role == "assistant" and not content.strip():
        raise BadExample(f"turn {number} is an empty answer")
    return Message(role, content)


def parse_pair(fields: Mapping[str, Any]) -> Conversation:
    """A prompt and what should come back, under any of the names in PAIRS."""
    names = next((pair for pair in PAIRS if pair[0] in fields and pair[1] in fields), None)
    if names is None:
        raise BadExample("has no 'prompt' and 'completion' (or 'question' and 'answer')")
    prompt, answer = text_of(fields, names[0]), text_of(fields, names[1])
    if not prompt.strip():
        raise BadExample(f"has an empty {names[0]!r}")
    if not answer.strip():
        raise BadExample(f"has an empty {names[1]!r}")
    system = text_of(fields, "system")
    head = (Message("system", system),) if system.strip() else ()
    return Conversation((*head, Message("user", prompt.strip()), Message("assistant", answer.strip())))


PARSERS = {
    "chat": parse_chat,
    "alpaca": parse_alpaca,
    "sharegpt": parse_sharegpt,
    "pairs": parse_pair,
}


# Plain text → documents


def documents(text: str) -> list[Conversation]:
    """Plain text in pieces of at most PIECE_LIMIT characters, cut between paragraphs where there are any."""
    pieces, piece = [], ""
    for paragraph in split_long(text.replace("\r\n", "\n").strip("\n")):
        if piece and len(piece) + len(paragraph) > PIECE_LIMIT:
            pieces.append(piece)
            piece = ""
        piece += paragraph
    pieces.append(piece)
    return [Conversation((Message(DOCUMENT, piece.strip("\n")),)) for piece in pieces if piece.strip()]


def split_long(text: str) -> Iterator[str]:
    """Paragraphs with the blank lines after them; one too long is cut after a line, a sentence or a word."""
    for paragraph in re.findall(r".+?(?:\n\s*\n|\Z)", text, flags=re.DOTALL):
        while len(paragraph) > PIECE_LIMIT:
            cut = best_cut(paragraph[:PIECE_LIMIT])
            yield paragraph[:cut]
            paragraph = paragraph[cut:]
        yield paragraph


def best_cut(text: str) -> int:
    """Where to end a piece: after the last line, sentence or word of its second half, else at its end."""
    for end in ("\n", ". ", " "):
        found = text.rfind(end, len(text) // 2)
        if found >= 0:
            return found + len(end)
    return len(text)
