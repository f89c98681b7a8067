"""Data sets: the public files in every format, hand-made bad ones, and bytes at random."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool import datasets
from nightschool.datasets import Conversation, Message, load_dataset, parse_columns
from nightschool.errors import DataError, FileFormatError, NotFound


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def chat(*contents, **extra):
    roles = ["user", "assistant"] * len(contents)
    return {
        "messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)],
        **extra,
    }


def lines(*examples):
    return "\n".join(json.dumps(example) for example in examples)


def turns(conversation):
    return [(message.role, message.content) for message in conversation.messages]


# The public files


def test_all_of_stanford_alpaca_loads_and_its_28_empty_answers_are_not_learned(shared):
    path = shared / "instruct" / "alpaca_data.json"
    conversations = load_dataset(path)
    assert len(conversations) == 52_002
    for conversation, example in zip(conversations, json.loads(path.read_text("utf-8")), strict=True):
        assert conversation.instruction == (example["instruction"], example["input"])
        assert conversation.messages[-1].content == example["output"]
    assert sum(conversation.messages[-1].weight == 0 for conversation in conversations) == 28


def test_all_500_sharegpt_conversations_load_with_all_their_turns(shared):
    path = shared / "instruct" / "dummy_conversation.json"
    conversations = load_dataset(path)
    assert len(conversations) == 500
    for conversation, example in zip(conversations, json.loads(path.read_text("utf-8")), strict=True):
        assert [content for _, content in turns(conversation)] == [
            t["value"] for t in example["conversations"]
        ]
    assert {message.role for c in conversations for message in c.messages} == {"user", "assistant"}


def test_all_1923_gpteacher_examples_load_though_they_call_the_answer_response(shared):
    conversations = load_dataset(shared / "instruct" / "gpteacher_roleplay.json")
    assert len(conversations) == 1_923
    assert all(conversation.messages[-1].content.strip() for conversation in conversations)


def test_question_and_answer_lines_load(shared):
    assert [
        len(load_dataset(shared / "knowledge" / name))
        for name in ("tofu_authors_200.jsonl", "tofu_real_authors_100.jsonl", "tofu_world_facts_117.jsonl")
    ] == [200, 100, 117]


@pytest.mark.parametrize("name", ["judge_prompts", "mt_bench_question", "vicuna_bench_question"])
def test_a_json_file_without_answers_is_refused_with_what_it_has(shared, name):
    with pytest.raises(FileFormatError, match="in no known format: it has '"):
        load_dataset(shared / "instruct" / f"{name}.jsonl")


def test_a_book_of_plain_text_loses_nothing_but_blank_lines(shared):
    path = shared / "text" / "tinyshakespeare.txt"
    pieces = load_dataset(path)
    assert all(piece.is_document and len(piece.messages[0].content) <= 8_000 for piece in pieces)
    joined = "".join(piece.messages[0].content for piece in pieces)
    assert "".join(joined.split()) == "".join(path.read_text("utf-8").split())


# Every format, small


def test_openai_chat_with_system_weight_and_text_parts(tmp_path):
    example = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "no", "weight": 0},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": "yes", "weight": 1},
        ]
    }
    (conversation,) = load_dataset(write(tmp_path, "x", lines(example)))
    assert [content for _, content in turns(conversation)] == ["Be brief.", "a\nb", "no", "again", "yes"]
    assert [role for role, _ in turns(conversation)][:3] == ["system", "user", "assistant"]
    assert [message.weight for message in conversation.messages if message.role == "assistant"] == [0, 1]


def test_alpaca_joins_instruction_and_input_into_the_users_turn(tmp_path):
    example = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    (conversation,) = load_dataset(write(tmp_path, "x", json.dumps([example])))
    assert turns(conversation) == [("user", "Translate.\n\nHund"), ("assistant", "dog")]
    assert conversation.instruction == ("Translate.", "Hund")


def test_sharegpt_synonyms_and_ragged_ends(tmp_path):
    speakers = ["system", "chatgpt", "Human", "GPT", "user", "model", "human"]
    example = {"conversations": [{"from": s, "value": f"{i}"} for i, s in enumerate(speakers)]}
    (conversation,) = load_dataset(write(tmp_path, "x", lines(example)))
    assert turns(conversation) == [
        ("system", "0"), ("user", "2"), ("assistant", "3"), ("user", "4"), ("assistant", "5"),
    ]  # fmt: skip


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [("prompt", "completion"), ("Question", "Answer")])
def test_csv_with_known_columns_in_any_order_quotes_and_line_ends(tmp_path, delimiter, header):
    rows = [("note", *header), ("x", 'say "hi"', "hi"), ("y", "two\r\nlines", "ok")]
    text = "\r\n".join(delimiter.join('"' + c.replace('"', '""') + '"' for c in row) for row in rows)
    conversations = load_dataset(write(tmp_path, "x.csv", text))
    assert [turns(c)[0][1] for c in conversations] == ['say "hi"', "two\r\nlines"]


def test_csv_in_alpacas_columns_is_alpaca(tmp_path):
    (conversation,) = load_dataset(write(tmp_path, "x", "instruction,input,output\nAdd.,1 2,3\n"))
    assert conversation.instruction == ("Add.", "1 2")


def test_columns_of_other_names_are_given_by_the_person(tmp_path):
    path = write(tmp_path, "x.csv", "Frage,Antwort,Rolle\nWas?,Das.,Lehrer\n")
    with pytest.raises(FileFormatError, match="columns frage, antwort, rolle.*--columns"):
        load_dataset(path)
    (conversation,) = load_dataset(
        path, columns=parse_columns("prompt=Frage, completion=Antwort,system=Rolle")
    )
    assert turns(conversation) == [("system", "Lehrer"), ("user", "Was?"), ("assistant", "Das.")]
    with pytest.raises(DataError, match="line 2: has no column 'q'"):
        load_dataset(path, columns={"prompt": "q", "completion": "Antwort"})


@pytest.mark.parametrize("text", ["prompt", "prompt=a", "prompt=a,answer=b", ""])
def test_columns_that_name_no_prompt_and_completion_are_refused(text):
    with pytest.raises(FileFormatError, match="not of the form"):
        parse_columns(text)


def test_markdown_is_text_even_when_it_begins_with_a_link_or_a_brace(tmp_path):
    for text in ("[home](x.md)\n\nHello.", "# Title\n\nprompt, then text", "Dear, all; of you"):
        (conversation,) = load_dataset(write(tmp_path, "x.md", text))
        assert conversation == Conversation((Message("document", text),))


def test_text_format_takes_even_json_as_text(tmp_path):
    path = write(tmp_path, "x.jsonl", lines(chat("a", "b")))
    assert load_dataset(path, format="text")[0].is_document
    assert not load_dataset(path)[0].is_document


def test_a_paragraph_longer_than_a_piece_is_cut_between_words(tmp_path):
    text = "word " * 5_000
    pieces = load_dataset(write(tmp_path, "x.txt", text))
    assert [len(p.messages[0].content) <= datasets.PIECE_LIMIT for p in pieces] == [True] * len(pieces)
    assert "".join(p.messages[0].content for p in pieces) == text


def test_the_content_decides_and_not_the_name(tmp_path):
    for name in ("x.txt", "x.csv", "x.json", "x"):
        assert (
            turns(load_dataset(write(tmp_path, name, lines(chat("a", "b"), chat("c", "d"))))[1])[0][1] == "c"
        )


def test_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(tmp_path):
    text = "\ufeff" + lines(chat("ä", "ö")) + "\r\n\r\n" + lines(chat("c", "d")) + "\r\n"
    assert [turns(c)[0][1] for c in load_dataset(write(tmp_path, "x.jsonl", text))] == ["ä", "c"]


# What cannot be used


BAD_CHATS = [
    ({"messages": []}, "'messages' is not a list"),
    ({"messages": "hi"}, "'messages' is not a list"),
    ({"prompt": "a", "completion": "b"}, "has no list 'messages'"),
    ([1, 2], "is not a JSON object"),
    (chat("only a question"), "has no assistant turn"),
    (chat("a", "  \n"), "message 2 is an empty assistant turn"),
    (chat("a", None), "message 2 has no text content"),
    (chat("a", "b", tools=[{"type": "function"}]), "defines tools"),
    (chat("a\0", "b"), "NUL character in a user turn"),
    ({"messages": [{"role": "assistant", "content": "b"}]}, "turns out of order"),
    ({"messages": [*chat("a", "b")["messages"], {"role": "system", "content": "s"}]}, "not the first"),
    ({"messages": [*chat("a")["messages"], *chat("a", "b")["messages"]]}, "turns out of order"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "1"}]},
        "message 2 calls a tool",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "message 2 calls a tool",
    ),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "message 1 has the role 'wizard'"),
    ({"messages": ["hi"]}, "message 1 is not an object"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "part of type 'image_url'"),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "weight": 0.5},
            ]
        },
        "message 2 has the weight 0.5",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "weight": "1"},
            ]
        },
        "message 2 has the weight '1'",
    ),
]


@pytest.mark.parametrize(("example", "reason"), BAD_CHATS, ids=[reason for _, reason in BAD_CHATS])
def test_a_bad_line_is_named_by_number_and_reason(tmp_path, example, reason):
    path = write(tmp_path, "x.jsonl", lines(chat("a", "b"), example))
    with pytest.raises(DataError, match=rf"1 of 2 examples cannot be used.\n  line 2: .*{reason}"):
        load_dataset(path)


def test_half_a_surrogate_pair_is_a_bad_line(tmp_path):
    path = write(tmp_path, "x.jsonl", '{"prompt": "\\ud83d", "completion": "b"}')
    with pytest.raises(DataError, match="line 1: has half a surrogate pair in a user turn"):
        load_dataset(path)


def test_json_nested_deeper_than_python_reads_is_a_bad_line(tmp_path):
    with pytest.raises(DataError, match="line 1: is not JSON: nested too deeply"):
        load_dataset(write(tmp_path, "x.jsonl", "[" * 100_000))


def test_all_bad_lines_are_reported_at_once_the_first_20_in_full(tmp_path):
    path = write(
        tmp_path, "x.jsonl", "\n".join([lines(chat("a", "b")), *["{broken"] * 30, "", lines(chat("c"))])
    )
    with pytest.raises(DataError) as error:
        load_dataset(path)
    message = str(error.value).split("\n")
    assert message[0] == "x.jsonl: 31 of 32 examples cannot be used."
    assert message[1].startswith("  line 2: is not JSON: Expecting property name")
    assert len(message) == 23 and message[21] == "  … and 11 more"
    assert message[22] == "Mend or remove them, then try again."


def test_every_line_that_is_not_utf8_is_named(tmp_path):
    good = lines(chat("a", "b")).encode()
    path = write(tmp_path, "x.jsonl", b"\n".join([good, b'{"prompt": "caf\xe9"}', good, b"\xff"]))
    with pytest.raises(DataError, match=r"line 2: byte 0xE9 is not UTF-8.*\n  line 4: byte 0xFF"):
        load_dataset(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl", b"", "x.jsonl is empty"),
        ("x.txt", b" \n\t\n", "x.txt is empty"),
        ("x.txt", b"\xef\xbb\xbf", "x.txt is empty"),
        ("x.json", "[]", "in no known format|holds no examples"),
        ("x.jsonl", "\ufeff{}".encode("utf-16"), "UTF-16"),
        ("x.gguf", b"GGUF\x03\x00", "not a text file"),
        ("x.json", '[{"prompt": "a",]', "JSON array with a mistake: .* at line 1, column"),
        ("x.json", "hello", "x.json is not JSON: .* at line 1, column 1"),
        ("x.json", "[1, 2]", "it holds no objects"),
    ],
)
def test_a_file_that_is_none_of_ours_is_one_sentence(tmp_path, name, content, reason):
    with pytest.raises(FileFormatError, match=reason):
        load_dataset(write(tmp_path, name, content))


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(NotFound, match="There is no file"):
        load_dataset(tmp_path / "none.jsonl")
    with pytest.raises(FileFormatError, match="is not a file"):
        load_dataset(tmp_path)


def test_csv_rows_with_missing_cells_or_empty_answers_are_named_by_their_first_line(tmp_path):
    text = 'prompt,completion\n"two\nlines",ok\na\nb,\n,c\n'
    with pytest.raises(DataError) as error:
        load_dataset(write(tmp_path, "x.csv", text))
    assert str(error.value).split("\n")[1:4] == [
        "  line 4: has 1 cells where the header has 2",
        "  line 5: has an empty 'completion'",
        "  line 6: has an empty 'prompt'",
    ]


def test_an_unclosed_quote_in_csv_is_a_bad_line(tmp_path):
    with pytest.raises(DataError, match="line 3: is not CSV: unexpected end of data"):
        load_dataset(write(tmp_path, "x.csv", 'prompt,completion\na,b\n"c,d\n'))


def test_a_line_of_many_megabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "LINE_LIMIT", 1_000)
    path = write(tmp_path, "x.jsonl", lines(chat("a", "b"), chat("a" * 1_000, "b")))
    with pytest.raises(DataError, match="line 2: is longer than"):
        load_dataset(path)


# Anything at all


SEEDS = [
    lines(chat("a", "b"), chat("c", "d")),
    json.dumps([{"instruction": "a", "input": "", "output": "b"}]),
    json.dumps([{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]),
    'prompt,completion\n"a, b",c\n',
    "Some text.\n\nMore of it.",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "role",
                    "content",
                    "weight",
                    "conversations",
                    "from",
                    "value",
                    "prompt",
                    "completion",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
        | st.sampled_from(["user", "assistant", "human", "gpt", "text"])
    ),
    max_leaves=12,
)


def loads_or_refuses(path, **options):
    try:
        conversations = load_dataset(path, **options)
    except (DataError, FileFormatError) as error:
        assert "Traceback" not in str(error)
        return
    assert conversations
    for conversation in conversations:
        assert "".join(message.content for message in conversation.messages).encode("utf-8")


@given(content=st.binary(max_size=300), name=st.sampled_from(["x", "x.csv", "x.json", "x.jsonl", "x.md"]))
def test_random_bytes_are_read_or_refused(tmp_path_factory, content, name):
    loads_or_refuses(write(Path(tmp_path_factory.getbasetemp()), name, content))


@settings(max_examples=300)
@given(
    seed=st.sampled_from(SEEDS),
    place=st.integers(0, 100),
    cut=st.integers(0, 5),
    insert=st.binary(max_size=4) | st.sampled_from([b'"', b"\r", b"{", b"]", b"\\ud800", b"\n", b"null"]),
    name=st.sampled_from(["x", "x.csv", "x.json"]),
    format=st.sampled_from([None, *datasets.FORMATS]),
)
def test_mutated_files_are_read_or_refused(tmp_path_factory, seed, place, cut, insert, name, format):
    raw = seed.encode()
    place %= len(raw)
    path = write(Path(tmp_path_factory.getbasetemp()), name, raw[:place] + insert + raw[place + cut :])
    loads_or_refuses(path, format=format)


@settings(max_examples=300)
@given(values=st.lists(JSON, min_size=1, max_size=3), array=st.booleans())
def test_any_json_is_read_or_refused(tmp_path_factory, values, array):
    text = json.dumps(values) if array else "\n".join(map(json.dumps, values))
    loads_or_refuses(write(Path(tmp_path_factory.getbasetemp()), "x.jsonl", text))
