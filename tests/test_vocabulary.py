"""vocabulary: llama.cpp cuts text into the very tokens that the original tokenizer does."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nightschool.conversion import write_model
from nightschool.engine import Engine
from nightschool.errors import FileFormatError, UnsupportedModel
from nightschool.gguf import GGUFFile, TensorType, open_gguf
from nightschool.huggingface import read_huggingface
from nightschool.vocabulary import PRE_TOKENIZERS, pre_tokenizer_name

CORPUS = """The night school opens at seven. Its teacher, Mrs Odell, keeps 12 lamps and 304 books in a mill.
On Mondays they learn to read maps; on Fridays they sing. "Who has the key?" asked Tom. "I've got it,"
said Ida, "it's under the mat." They'd walked 1234567 miles through snow - and nobody complained!
Über alle Maße schön: naïve café. CamelCase HTTPServer iPhone; x = foo_bar(3.14) / 2 // done
def f(a, b):
    return a + b\t# ok
"""
TEXTS = [
    CORPUS,
    "the mill",
    " the mill",
    "  three   spaces    and\nlines\n\n\n end ",
    "I'VE got 1 22 333 4444 55555 things, haven't I? WE'LL see...",
    "日本語のテキスト и русский текст 🦙🦙 ελληνικά",
    "tabs\t\tand\r\nreturns\r\r\n",
    "a/b\\\\c{d}[e]<f>|g| $5 100% C++ -- ---- ''''",
    "Ünïcödé ÀÉÎ ﬁne ½ ²",
    "x",
]


def model_around(
    folder: Path, tokenizer: transformers.PreTrainedTokenizerBase, rows: int | None = None
) -> Path:
    """The smallest llama that can carry a tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def converted(folder: Path) -> tuple[GGUFFile, list[str]]:
    source = read_huggingface(folder)
    list(write_model(source, folder / "model.gguf", type=TensorType.F16))
    return open_gguf(folder / "model.gguf"), list(source.notices)


def assert_same_tokens(file: GGUFFile, encode) -> None:
    """`encode` is the original: text → ids."""
    with Engine(file.path) as engine:
        for text in TEXTS:
            assert engine.tokenize(text, add_special=True, parse_special=True) == encode(text), repr(text)


# BPE on bytes -------------------------------------------------------------------------------------------


def steps_of(signature: tuple[str, ...]) -> list[pre_tokenizers.PreTokenizer]:
    """The pre-tokenizer in tokenizers that reads back as a key of PRE_TOKENIZERS."""
    steps = []
    for part in signature:
        if part == "digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif part != "gpt-2":
            steps.append(pre_tokenizers.Split(Regex(part), "isolated"))
    return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="gpt-2" in signature)]


def byte_bpe(signature: tuple[str, ...], *, ignore_merges: bool = False, bos: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps_of(signature))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def fast(tokenizer: Tokenizer, **options: object) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **options
    )


@pytest.mark.parametrize("signature", PRE_TOKENIZERS, ids=PRE_TOKENIZERS.values())
def test_every_rule_for_words_cuts_as_the_original(tmp_path, signature):
    original = byte_bpe(signature, ignore_merges=PRE_TOKENIZERS[signature] == "tekken")
    file, _ = converted(model_around(tmp_path / "m", fast(original)))
    assert file.metadata["tokenizer.ggml.pre"] == PRE_TOKENIZERS[signature]
    assert file.metadata["tokenizer.ggml.model"] == "gpt2"
    assert_same_tokens(file, lambda text: original.encode(text).ids)


def test_llama_3_takes_whole_words_before_merges(tmp_path):
    signature = next(key for key, name in PRE_TOKENIZERS.items() if name == "dbrx")
    original = byte_bpe(signature, ignore_merges=True)
    file, _ = converted(model_around(tmp_path / "m", fast(original)))
    assert file.metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert_same_tokens(file, lambda text: original.encode(text).ids)


def test_added_tokens_are_found_in_text_and_unused_rows_are_marked(tmp_path):
    tokenizer = fast(byte_bpe(("gpt-2",)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>"])
    file, _ = converted(model_around(tmp_path / "m", tokenizer, rows=len(tokenizer) + 3))
    tokens, types = (file.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    by_name = dict(zip(tokens, types, strict=True))
    assert (by_name["<|im_start|>"], by_name["<think>"], by_name["Ġthe"]) == (3, 4, 1)
    assert tokens[-3:] == [f"[PAD{index}]" for index in range(len(tokens) - 3, len(tokens))]
    assert types[-3:] == [5, 5, 5]
    text = "<|im_start|>user\nthe <think> mill<|im_end|>"
    with Engine(file.path) as engine:
        assert engine.tokenize(text, add_special=True) == tokenizer(text)["input_ids"]


def test_tokens_beyond_the_embedding_are_left_out_and_named(tmp_path):
    tokenizer = fast(byte_bpe(("gpt-2",)))
    rows = len(tokenizer)
    tokenizer.add_tokens(["<image>"])
    file, notices = converted(model_around(tmp_path / "m", tokenizer, rows=rows))
    assert len(file.metadata["tokenizer.ggml.tokens"]) == rows
    assert notices == ["1 tokens have no row in the embedding and are left out: ['<image>']."]


# SentencePiece --------------------------------------------------------------------------------------


def train_sentencepiece(path: Path, **options: object) -> object:
    """A real SentencePiece model of some 500 pieces; returns its own processor."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((CORPUS * 3).splitlines()),
        model_writer=model,
        **{
            "vocab_size": 450,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "character_coverage": 1.0,
            "hard_vocab_limit": False,
            "minloglevel": 2,
        }
        | options,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def folder_with(tmp_path: Path, processor) -> Path:
    """A model folder that has nothing of a tokenizer yet."""
    config = transformers.LlamaConfig(
        vocab_size=processor.get_piece_size(),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("prefix", [True, False])
def test_tokenizer_model_alone_is_enough(tmp_path, prefix):
    original = train_sentencepiece(tmp_path / "tokenizer.model", add_dummy_prefix=prefix)
    folder = folder_with(tmp_path, original)
    shutil.copy(tmp_path / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    file, _ = converted(folder)
    assert file.metadata["tokenizer.ggml.model"] == "llama"
    assert file.metadata["tokenizer.ggml.tokens"] == [
        original.id_to_piece(index) for index in range(original.get_piece_size())
    ]
    assert file.metadata["tokenizer.ggml.scores"] == [
        original.get_score(index) for index in range(original.get_piece_size())
    ]
    assert file.metadata["tokenizer.ggml.bos_token_id"] == 1
    assert_same_tokens(file, lambda text: [1, *original.encode(text)])


@pytest.mark.parametrize("prefix", [True, False])
def test_tokenizer_json_gives_the_same_tokens_as_the_model_it_was_made_from(tmp_path, prefix):
    original = train_sentencepiece(tmp_path / "tokenizer.model", add_dummy_prefix=prefix)
    pieces = {original.id_to_piece(index): index for index in range(original.get_piece_size())}
    by_score = sorted(pieces, key=lambda piece: -original.get_score(pieces[piece]))
    merges = [
        (piece[:cut], piece[cut:])
        for piece in by_score
        if original.get_score(pieces[piece]) > -1e9 and not piece.startswith("<")
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    tokenizer = Tokenizer(models.BPE(pieces, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if prefix else steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    file, _ = converted(model_around(tmp_path / "m", fast(tokenizer, unk_token="<unk>")))
    assert file.metadata["tokenizer.ggml.model"] == "llama"
    assert file.metadata["tokenizer.ggml.add_space_prefix"] is prefix
    kinds = file.metadata["tokenizer.ggml.token_type"]
    assert kinds[:4] == [2, 3, 3, 6]
    assert_same_tokens(file, lambda text: [1, *original.encode(text)])


def test_the_form_in_which_transformers_saves_llama_tokenizers_is_known(tmp_path):
    original = train_sentencepiece(tmp_path / "tokenizer.model")
    pieces = {original.id_to_piece(index): index for index in range(original.get_piece_size())}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -original.get_score(pieces[piece]))
        if not piece.startswith("<")
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    tokenizer = transformers.LlamaTokenizer(vocab=pieces, merges=merges, add_bos_token=True)
    file, _ = converted(model_around(tmp_path / "m", tokenizer))
    assert file.metadata["tokenizer.ggml.add_space_prefix"] is True
    # It puts no space before a text that starts with one; SentencePiece and llama.cpp do.
    assert_same_tokens(file, lambda text: tokenizer(text if text[0] != " " else " " + text)["input_ids"])


def test_unigram_from_both_files(tmp_path):
    options = {"model_type": "unigram", "byte_fallback": False, "vocab_size": 200}
    original = train_sentencepiece(tmp_path / "tokenizer.model", **options)
    folder = folder_with(tmp_path, original)
    shutil.copy(tmp_path / "tokenizer.model", folder)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(marks))
    file, _ = converted(folder)
    assert file.metadata["tokenizer.ggml.model"] == "t5"
    known = [text for text in TEXTS if 0 not in original.encode(text)]
    assert len(known) > 2
    with Engine(file.path) as engine:
        for text in known:
            assert engine.tokenize(text, add_special=True) == [1, *original.encode(text)]
    pieces = [(original.id_to_piece(i), original.get_score(i)) for i in range(original.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    again, _ = converted(folder)
    for key in ("model", "tokens", "add_space_prefix", "bos_token_id"):
        assert again.metadata[f"tokenizer.ggml.{key}"] == file.metadata[f"tokenizer.ggml.{key}"]


# Marks and templates ----------------------------------------------------------------------------------


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(settings | changes))


def test_whether_texts_get_a_bos_follows_the_setting_then_the_template(tmp_path):
    folder = model_around(tmp_path / "m", fast(byte_bpe(("gpt-2",))))
    assert converted(folder)[0].metadata["tokenizer.ggml.add_bos_token"] is True
    edit(folder / "tokenizer_config.json", add_bos_token=False)
    assert converted(folder)[0].metadata["tokenizer.ggml.add_bos_token"] is False
    bare = model_around(tmp_path / "bare", fast(byte_bpe(("gpt-2",), bos=False)))
    assert converted(bare)[0].metadata["tokenizer.ggml.add_bos_token"] is False


def test_marks_may_be_named_by_objects_or_by_numbers_in_the_config(tmp_path):
    folder = model_around(tmp_path / "m", fast(byte_bpe(("gpt-2",))))
    edit(folder / "tokenizer_config.json", eos_token={"content": "</s>"}, bos_token=None)
    edit(folder / "config.json", bos_token_id=7)
    metadata = converted(folder)[0].metadata
    assert (metadata["tokenizer.ggml.eos_token_id"], metadata["tokenizer.ggml.bos_token_id"]) == (1, 7)


def test_of_several_ends_the_one_that_ends_a_turn_is_told(tmp_path):
    tokenizer = fast(byte_bpe(("gpt-2",)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<other>", "<end_of_turn>"]})
    folder = model_around(tmp_path / "m", tokenizer)
    other, turn = tokenizer.convert_tokens_to_ids(["<other>", "<end_of_turn>"])
    edit(folder / "generation_config.json", eos_token_id=[1, other, turn])
    assert converted(folder)[0].metadata["tokenizer.ggml.eot_token_id"] == turn


def test_the_chat_template_comes_from_either_file(tmp_path):
    tokenizer = fast(byte_bpe(("gpt-2",)))
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    folder = model_around(tmp_path / "m", tokenizer)
    assert (folder / "chat_template.jinja").is_file()
    assert converted(folder)[0].metadata["tokenizer.chat_template"] == tokenizer.chat_template
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    edit(folder / "tokenizer_config.json", chat_template=named)
    file, _ = converted(folder)
    assert file.metadata["tokenizer.chat_template"] == "y"
    with Engine(file.path) as engine:
        assert engine.apply_template([{"role": "user", "content": "hi"}]) == "y"


# Refusals -----------------------------------------------------------------------------------------------


def test_a_rule_that_llama_cpp_has_no_name_for_is_refused():
    steps = [{"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False}]
    with pytest.raises(UnsupportedModel, match=r"no name for: '\[a-z\]\+'"):
        pre_tokenizer_name([*steps, {"type": "ByteLevel", "use_regex": False}])


def break_tokenizer(folder: Path, change) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))


BREAKS = {
    "of the kind 'WordPiece'": lambda d: d["model"].update(type="WordPiece"),
    "changes text by 'Lowercase'": lambda d: d.update(normalizer={"type": "Lowercase"}),
    "has no byte tokens": lambda d: d.update(pre_tokenizer=None),
    "Unigram with byte tokens": lambda d: d["model"].update(type="Unigram", byte_fallback=True),
    "not a tokenizer of a known form .KeyError.'model'": lambda d: d.pop("model"),
    "not a tokenizer of a known form": lambda d: d.update(added_tokens=[7]),
    "not a tokenizer of a known form .*AttributeError": lambda d: d["model"].update(vocab=["a"]),
}


@pytest.mark.parametrize("expected", BREAKS)
def test_what_is_wrong_with_a_tokenizer_is_said(tmp_path, expected):
    folder = model_around(tmp_path / "m", fast(byte_bpe(("gpt-2",))))
    break_tokenizer(folder, BREAKS[expected])
    with pytest.raises((UnsupportedModel, FileFormatError), match=expected):
        converted(folder)


def test_a_damaged_tokenizer_model_is_refused(tmp_path):
    original = train_sentencepiece(tmp_path / "tokenizer.model")
    folder = folder_with(tmp_path, original)
    raw = (tmp_path / "tokenizer.model").read_bytes()
    for damaged in (raw[:-3], raw[: len(raw) // 2], b"\xff" * 40, b"\x0f" + raw):
        (folder / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(FileFormatError, match="not a tokenizer of a known form"):
            converted(folder)
