"""Read the tokenizer of a Hugging Face folder into the metadata that llama.cpp builds its own from.

Three kinds, by what is in tokenizer.json (or in SentencePiece's tokenizer.model, where that is all there is):

    BPE on bytes                    GGUF's "gpt2": tokens, merges, the name of the rule that cuts out words
    BPE on characters, with bytes   GGUF's "llama": SentencePiece's form, with scores in place of merges
    Unigram                         GGUF's "t5": tokens with log-probabilities

llama.cpp knows rules for cutting text by name only: a rule that it has no name for is refused, not guessed.
"""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nightschool.errors import FileFormatError, NotFound, UnsupportedModel

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's and SentencePiece's numbers

# What stands in tokenizer.json → `tokenizer.ggml.pre`. The regexes are those that llama.cpp's llama-vocab.cpp
# quotes as the originals of its own; "digits" cuts each digit off, "gpt-2" is the rule built into ByteLevel.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START, _ENDING = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    ("gpt-2",): "gpt-2",
    ("digits", "gpt-2"): "smollm",
    (rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",): "dbrx",  # "llama-bpe" where whole words go before merges
    (rf"{_WORDS}|\p{{N}}|{_REST}",): "qwen2",
    (rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_SLASH}",): "tekken",
    (
        rf"{_START}{_UPPER}*{_LOWER}+{_ENDING}|{_START}{_UPPER}+{_LOWER}*{_ENDING}|\p{{N}}{{1,3}}|{_REST_SLASH}",
    ): "gpt-4o",
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", "digits"): "deepseek-coder",
}


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises NotFound or FileFormatError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"There is no file {str(path)!r}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{str(path)!r} cannot be read as JSON: {error}.") from error


def read_vocabulary(folder: Path, config: dict[str, Any], rows: int) -> tuple[dict[str, Any], list[str]]:
    """The `tokenizer.` metadata for a model whose embedding has `rows`, and notices of what was left out.

    Raises NotFound, FileFormatError, or UnsupportedModel for tokenizers that llama.cpp cannot imitate.
    """
    settings = _optional(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            table, metadata = _from_tokenizer_json(read_json(path), rows)
        else:
            path = folder / "tokenizer.model"
            table, metadata = _from_sentencepiece(path, rows)
            _add_listed_tokens(table, folder, settings)
        metadata |= _marks(table, metadata, settings, (config, _optional(folder / "generation_config.json")))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, struct.error) as error:
        raise FileFormatError(f"{str(path)!r} is not a tokenizer of a known form ({error!r}).") from error
    metadata |= table.metadata() | _chat_template(folder, settings)
    metadata.setdefault("tokenizer.ggml.pre", "default")
    return metadata, table.notices()


def _optional(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise FileFormatError(f"{str(path)!r} should hold a JSON object.")
    return found


class _Table:
    """Tokens by number, as many as the embedding has rows; numbers that no token has are marked unused."""

    def __init__(self, rows: int) -> None:
        self.texts = [f"[PAD{index}]" for index in range(rows)]
        self.types = [UNUSED] * rows
        self.scores = [-10_000.0] * rows
        self.scored = False
        self.dropped: list[str] = []
        self.ids: dict[str, int] = {}

    def put(self, index: int, text: str, type: int, score: float = 0.0) -> None:
        if not 0 <= index < len(self.texts):
            self.dropped.append(text)
            return
        self.ids[text] = index  # by the spelling of the source
        # llama.cpp looks for these in text as it is, where a space is a space.
        self.texts[index] = text.replace("▁", " ") if type == USER_DEFINED else text
        self.types[index], self.scores[index] = type, score

    def metadata(self) -> dict[str, Any]:
        found = {"tokenizer.ggml.tokens": self.texts, "tokenizer.ggml.token_type": self.types}
        return found | ({"tokenizer.ggml.scores": self.scores} if self.scored else {})

    def notices(self) -> list[str]:
        if not self.dropped:
            return []
        return [
            f"{len(self.dropped)} tokens have no row in the embedding and are left out: {self.dropped[:3]}."
        ]


# tokenizer.json -----------------------------------------------------------------------------------


def _from_tokenizer_json(document: dict[str, Any], rows: int) -> tuple[_Table, dict[str, Any]]:
    model = document["model"]
    steps = _steps(document.get("pre_tokenizer"))
    table = _Table(rows)
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    if kind == "BPE" and any(step["type"] == "ByteLevel" for step in steps):
        metadata = _byte_bpe(document, steps, table)
    elif kind == "BPE":
        metadata = _sentencepiece_bpe(document, steps, table)
    elif kind == "Unigram":
        metadata = _unigram(document, steps, table)
    else:
        raise UnsupportedModel(f"Its tokenizer is of the kind {kind!r}; BPE and Unigram can be converted.")
    for token in document.get("added_tokens", []):
        known = table.types[token["id"]] if token["id"] < rows else UNUSED
        keep = known if known in (UNKNOWN, BYTE) else None
        table.put(token["id"], token["content"], keep or (CONTROL if token["special"] else USER_DEFINED))
    return table, metadata | _added_marks(document, table)


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer in a flat list."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] != "Sequence":
        return [pre_tokenizer]
    return [step for part in pre_tokenizer["pretokenizers"] for step in _steps(part)]


def _byte_bpe(document: dict[str, Any], steps: list[dict[str, Any]], table: _Table) -> dict[str, Any]:
    model = document["model"]
    _refuse_normalizer(document.get("normalizer"), {"NFC", "ByteLevel"})
    for text, index in model["vocab"].items():
        table.put(index, text, NORMAL)
    rule = pre_tokenizer_name(steps)
    if rule == "dbrx" and model.get("ignore_merges"):
        rule = "llama-bpe"
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule, "tokenizer.ggml.merges": merges}


def pre_tokenizer_name(steps: list[dict[str, Any]]) -> str:
    """What llama.cpp calls this way of cutting text into words. Raises UnsupportedModel if it has no name."""
    signature = tuple(part for part in map(_signature, steps) if part)
    name = PRE_TOKENIZERS.get(signature)
    if name is None:
        raise UnsupportedModel(
            f"Its tokenizer cuts text in a way that llama.cpp has no name for: {' then '.join(signature)!r}."
        )
    return name


def _signature(step: dict[str, Any]) -> str:
    match step["type"]:
        case "ByteLevel":
            return "gpt-2" if step.get("use_regex", True) else ""
        case "Digits" if step.get("individual_digits"):
            return "digits"
        case "Split" if step["behavior"] == "Isolated" and not step.get("invert"):
            pattern = step["pattern"].get("Regex") or step["pattern"]["String"]
            return str(pattern).replace("\r", r"\r").replace("\n", r"\n")
        case other:
            return f"<{other}>"


def _refuse_normalizer(normalizer: dict[str, Any] | None, harmless: set[str]) -> None:
    for step in _normalizer_steps(normalizer):
        if step["type"] not in harmless:
            raise UnsupportedModel(
                f"Its tokenizer changes text by {step['type']!r} first, which llama.cpp does not do."
            )


def _normalizer_steps(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if normalizer is None:
        return []
    if normalizer["type"] != "Sequence":
        return [normalizer]
    return [step for part in normalizer["normalizers"] for step in _normalizer_steps(part)]


def _sentencepiece_bpe(
    document: dict[str, Any], steps: list[dict[str, Any]], table: _Table
) -> dict[str, Any]:
    model = document["model"]
    if "<0x00>" not in model["vocab"]:
        raise UnsupportedModel(
            "Its tokenizer works on characters but has no byte tokens; llama.cpp needs them."
        )
    _refuse_normalizer(document.get("normalizer"), {"Prepend", "Replace"})
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    # SentencePiece merges the pair whose result has the best score: that of the earliest merge that gives it.
    score: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        score.setdefault(left + right, -float(rank))
    unknown = model.get("unk_token") or "<unk>"
    for text, index in model["vocab"].items():
        type = UNKNOWN if text == unknown else BYTE if _is_byte(text) else NORMAL
        table.put(index, text, type, score.get(text, -float(len(merges))) if type == NORMAL else 0.0)
    table.scored = True
    prefix = _has_prefix(_normalizer_steps(document.get("normalizer")), steps)
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": prefix}


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _has_prefix(normalizers: list[dict[str, Any]], steps: list[dict[str, Any]]) -> bool:
    """Whether a space is put before the text."""
    if any(step["type"] == "Prepend" for step in normalizers):
        return True
    for step in steps:
        if step["type"] == "Metaspace":
            scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space") else "never")
            return bool(scheme != "never")
    return False


def _unigram(document: dict[str, Any], steps: list[dict[str, Any]], table: _Table) -> dict[str, Any]:
    model = document["model"]
    normalizers = _normalizer_steps(document.get("normalizer"))
    _refuse_normalizer(document.get("normalizer"), {"Precompiled", "Replace", "Strip", "Prepend"})
    if model.get("byte_fallback"):
        raise UnsupportedModel("Its tokenizer is Unigram with byte tokens, which llama.cpp cannot imitate.")
    for index, (text, score) in enumerate(model["vocab"]):
        table.put(index, text, UNKNOWN if index == model.get("unk_id") else NORMAL, score)
    table.scored = True
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.add_space_prefix": _has_prefix(normalizers, steps),
        "tokenizer.ggml.remove_extra_whitespaces": any(
            step["type"] == "Replace" and "Regex" in step["pattern"] for step in normalizers
        ),
    }
    for step in normalizers:
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
            metadata["tokenizer.ggml.precompiled_charsmap"] = list(charsmap)
    return metadata


def _added_marks(document: dict[str, Any], table: _Table) -> dict[str, Any]:
    """Whether the tokenizer itself puts a mark before and after a text, by its template."""
    single = _template(document.get("post_processor"))
    if single is None:
        return {}
    kinds = ["SpecialToken" in piece for piece in single]
    return {"tokenizer.ggml.add_bos_token": kinds[0], "tokenizer.ggml.add_eos_token": kinds[-1]}


def _template(processor: dict[str, Any] | None) -> list[dict[str, Any]] | None:
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        found = [_template(part) for part in processor["processors"]]
        return next((single for single in found if single is not None), None)
    return processor["single"] if processor["type"] == "TemplateProcessing" else None


# tokenizer.model ------------------------------------------------------------------------------------


def _from_sentencepiece(path: Path, rows: int) -> tuple[_Table, dict[str, Any]]:
    """Read SentencePiece's own file (protocol buffer ModelProto, sentencepiece_model.proto)."""
    if not path.is_file():
        raise NotFound(f"There is no tokenizer.json and no tokenizer.model in {str(path.parent)!r}.")
    table = _Table(rows)
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    index = 0
    for number, value in _fields(path.read_bytes()):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
            table.put(index, piece[1].decode("utf-8"), piece.get(3, NORMAL), score)
            index += 1
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(_fields(value))
    table.scored = True
    unigram = trainer.get(3, 1) == 1
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "t5" if unigram else "llama",
        "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)),
    }
    if unigram:
        if BYTE in table.types:
            raise UnsupportedModel(
                "Its tokenizer is Unigram with byte tokens, which llama.cpp cannot imitate."
            )
        metadata["tokenizer.ggml.remove_extra_whitespaces"] = bool(normalizer.get(4, 1))
        if charsmap := normalizer.get(2):
            metadata["tokenizer.ggml.precompiled_charsmap"] = list(charsmap)
    return table, metadata


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message: number and value, an int or bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        match key & 7:
            case 0:
                value, at = _varint(raw, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(raw, at)
            case 5:
                size = 4
            case wire:
                raise ValueError(f"wire type {wire}")
        if at + size > len(raw):
            raise ValueError("it ends early")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 127) << shift
        at += 1
        if raw[at - 1] < 128:
            return value, at
        shift += 7


def _add_listed_tokens(table: _Table, folder: Path, settings: dict[str, Any]) -> None:
    """Tokens that were added to a SentencePiece vocabulary stand in two other files."""
    for text, index in _optional(folder / "added_tokens.json").items():
        table.put(index, text, USER_DEFINED)
    for number, token in settings.get("added_tokens_decoder", {}).items():
        index = int(number)
        if index >= len(table.types) or table.types[index] not in (UNKNOWN, BYTE):
            table.put(index, token["content"], CONTROL if token.get("special") else USER_DEFINED)


# For both ---------------------------------------------------------------------------------------------


def _marks(
    table: _Table, metadata: dict[str, Any], settings: dict[str, Any], configs: tuple[dict[str, Any], ...]
) -> dict[str, Any]:
    """The numbers of the tokens with a part to play, and whether a text gets them by itself.

    `configs` are config.json and generation_config.json, the first with numbers, the second with all ends.
    """
    found: dict[str, Any] = {}
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for role, name in roles.items():
        numbers = [config.get(f"{role}_token_id") for config in configs]
        index = _token_id(table, settings.get(f"{role}_token"), numbers)
        if index is not None:
            found[f"tokenizer.ggml.{name}_token_id"] = index
    ends = next(
        (ends for config in reversed(configs) if isinstance(ends := config.get("eos_token_id"), list)), []
    )
    turn_end = _end_of_turn(table, ends, found.get("tokenizer.ggml.eos_token_id"))
    if turn_end is not None:
        found["tokenizer.ggml.eot_token_id"] = turn_end
    spm = metadata["tokenizer.ggml.model"] == "llama"
    for role, by_default in (("bos", spm), ("eos", False)):
        key = f"tokenizer.ggml.add_{role}_token"
        wanted = settings.get(f"add_{role}_token")
        if wanted is None:
            wanted = metadata.get(key, by_default)
        found[key] = bool(wanted) and f"tokenizer.ggml.{role}_token_id" in found
    return found


def _token_id(table: _Table, token: Any, numbers: list[Any]) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    if text in table.ids:
        return table.ids[text]
    for number in numbers:
        first = number[0] if isinstance(number, list) and number else number
        if isinstance(first, int) and 0 <= first < len(table.texts):
            return first
    return None


def _end_of_turn(table: _Table, ends: list[int], eos: int | None) -> int | None:
    """Of several tokens that end an answer, the one besides EOS that ends a turn, by its name."""
    known = (number for number in ends if number != eos and 0 <= number < len(table.texts))
    names = ((number, table.texts[number].lower()) for number in known)
    return next((number for number, name in names if "eot" in name or "end" in name), None)


def _chat_template(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    file = folder / "chat_template.jinja"
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    return {"tokenizer.chat_template": template} if isinstance(template, str) else {}
