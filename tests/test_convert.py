"""convert and llama2c: the checkpoints of llama2.c tell the same stories in llama.cpp."""

import heapq
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool.cli import main
from nightschool.conversion import tensor_type
from nightschool.convert import convert
from nightschool.engine import Engine
from nightschool.errors import FileFormatError, NotFound, UnsupportedModel
from nightschool.events import Notice, Progress
from nightschool.gguf import TensorType, open_gguf
from nightschool.quants import dequantize

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the"
TEXTS = [
    STORY,
    "",
    " ",
    "a",
    "  two  spaces ",
    'Tom said, "Let\'s go!"\n\nThey ran.\t12 times, 3.5 km.',
    "naïve café, Üben — ﬁ 日本語 🦙",
    "ONCE UPON A TIME ZZZ\x00\x7f",
]
MODELS = ["stories260K", "stories3M-q80"]


def run(source: Path, destination: Path, **options: object) -> list[str]:
    """Convert and return what was said."""
    return [event.text for event in convert(source, destination, **options) if isinstance(event, Notice)]


@pytest.fixture(scope="module")
def converted(shared, tmp_path_factory):
    """Both shared models as F32 GGUF, by name."""
    folder = tmp_path_factory.mktemp("stories")
    paths = {name: folder / f"{name}.gguf" for name in MODELS}
    for name, path in paths.items():
        run(shared / "models" / f"{name}.bin", path, type=TensorType.F32)
    return paths


# A second reading of llama2.c: run.c's arithmetic and tokeniser, on the raw file ------------------------


class Reference:
    """run.c in torch: weights in the order of the file, rotary pairs side by side."""

    def __init__(self, path: Path, tokens: Path) -> None:
        raw = path.read_bytes()
        modern = raw[:4] == b"24ka"
        numbers = struct.unpack_from("<7i", raw, 8 if modern else 0)
        self.dim, self.hidden, self.layers, self.heads, self.kv_heads, self.vocabulary, _ = numbers
        self.raw, self.at = raw, 256 if modern else 28
        self.group = struct.unpack_from("<i", raw, 37)[0] if modern else 0
        self._read_quantised() if modern else self._read_floats()
        self.tokens = self._read_tokens(tokens.read_bytes())
        self.ids = {text: index for index, (_, text) in reversed(list(enumerate(self.tokens)))}

    def _floats(self, *shape: int) -> torch.Tensor:
        count = int(np.prod(shape))
        array = np.frombuffer(self.raw, np.float32, count, self.at).copy()
        self.at += 4 * count
        return torch.from_numpy(array).view(shape)

    def _matrix(self, *shape: int) -> torch.Tensor:
        codes = np.frombuffer(self.raw, np.int8, int(np.prod(shape)), self.at).astype(np.float32)
        self.at += codes.size
        scales = self._floats(codes.size // self.group, 1)
        return (torch.from_numpy(codes).view(-1, self.group) * scales).view(shape)

    def _read_floats(self) -> None:
        n, d, kv = self.layers, self.dim, self.dim * self.kv_heads // self.heads
        self.embedding = self._floats(self.vocabulary, d)
        self.attention_norm = self._floats(n, d)
        self.q, self.k, self.v = self._floats(n, d, d), self._floats(n, kv, d), self._floats(n, kv, d)
        self.o, self.ffn_norm = self._floats(n, d, d), self._floats(n, d)
        self.w1 = self._floats(n, self.hidden, d)
        self.w2, self.w3 = self._floats(n, d, self.hidden), self._floats(n, self.hidden, d)
        self.norm = self._floats(d)

    def _read_quantised(self) -> None:
        n, d, kv = self.layers, self.dim, self.dim * self.kv_heads // self.heads
        self.attention_norm, self.ffn_norm, self.norm = (
            self._floats(n, d),
            self._floats(n, d),
            self._floats(d),
        )
        self.embedding = self._matrix(self.vocabulary, d)
        shapes = {"q": (d, d), "k": (kv, d), "v": (kv, d), "o": (d, d)}
        shapes |= {"w1": (self.hidden, d), "w2": (d, self.hidden), "w3": (self.hidden, d)}
        for name, shape in shapes.items():
            setattr(self, name, torch.stack([self._matrix(*shape) for _ in range(n)]))

    @staticmethod
    def _read_tokens(raw: bytes) -> list[tuple[float, str]]:
        found, at = [], 4
        while at < len(raw):
            score, length = struct.unpack_from("<fi", raw, at)
            found.append((score, raw[at + 8 : at + 8 + length].decode()))
            at += 8 + length
        return found

    def encode(self, text: str) -> list[int]:
        """BOS, a space before the text, characters or their bytes, then always the merge that scores best."""
        ids: list[int] = []
        for character in " " + text if text else "":
            known = self.ids.get(character)
            ids += [known] if known is not None else [byte + 3 for byte in character.encode()]
        while True:
            merges = []
            for at, pair in enumerate(zip(ids, ids[1:], strict=False)):
                merged = self.ids.get(self.tokens[pair[0]][1] + self.tokens[pair[1]][1])
                if merged is not None:
                    merges.append((-self.tokens[merged][0], at, merged))
            if not merges:
                return [1, *ids]
            _, at, merged = heapq.nsmallest(1, merges)[0]
            ids[at : at + 2] = [merged]

    def logits(self, ids: list[int]) -> torch.Tensor:
        """(T,) → (T, vocabulary)"""
        x = self.embedding[ids]
        for layer in range(self.layers):
            h = _norm(x, self.attention_norm[layer])
            q, k, v = (self._heads(h @ w[layer].T) for w in (self.q, self.k, self.v))
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, 0) for t in (k, v))
            scores = _rotate(q) @ _rotate(k).mT / q.shape[-1] ** 0.5
            mask = torch.full(scores.shape[-2:], -torch.inf).triu(1)
            mixed = (scores + mask).softmax(-1) @ v  # (heads, T, head_dim)
            x = x + mixed.transpose(0, 1).flatten(1) @ self.o[layer].T
            h = _norm(x, self.ffn_norm[layer])
            x = (
                x
                + (torch.nn.functional.silu(h @ self.w1[layer].T) * (h @ self.w3[layer].T)) @ self.w2[layer].T
            )
        return _norm(x, self.norm) @ self.embedding.T

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1, self.dim // self.heads).transpose(0, 1)


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def _rotate(x: torch.Tensor) -> torch.Tensor:
    """(heads, T, head_dim), pairs (0, 1), (2, 3), …"""
    size = x.shape[-1]
    angles = torch.outer(torch.arange(x.shape[1]), 10_000 ** -(torch.arange(0, size, 2) / size))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones(()), angles
    )
    return torch.view_as_real(turned).flatten(-2)


@pytest.fixture(scope="module")
def references(shared):
    tokens = {"stories260K": "tok512.bin", "stories3M-q80": "tok4096.bin"}
    folder = shared / "models"
    return {name: Reference(folder / f"{name}.bin", folder / tokens[name]) for name in MODELS}


@pytest.fixture(scope="module")
def engines(converted):
    with Engine(converted[MODELS[0]]) as first, Engine(converted[MODELS[1]]) as second:
        yield dict(zip(MODELS, (first, second), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_texts_become_the_tokens_of_run_c(engines, references, name):
    for text in TEXTS:
        found = engines[name].tokenize(text, add_special=True, parse_special=False)
        assert found == references[name].encode(text), text


@pytest.mark.parametrize("name", MODELS)
def test_the_next_token_has_the_probabilities_of_run_c(engines, references, name):
    ids = references[name].encode(STORY)
    expected = references[name].logits(ids).log_softmax(-1)
    for length in (1, 5, len(ids)):
        answer = engines[name].complete(ids[:length], max_tokens=1, n_probs=50, temperature=0.0)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            assert entry["logprob"] == pytest.approx(float(expected[length - 1, entry["id"]]), abs=0.03)


@pytest.mark.parametrize("name", MODELS)
def test_a_story_goes_on_as_run_c_tells_it(engines, references, name):
    start = references[name].encode(STORY)
    ids = list(start)
    for _ in range(24):
        ids.append(int(references[name].logits(ids)[-1].argmax()))
    answer = engines[name].complete(STORY, max_tokens=24, temperature=0.0)
    assert answer["tokens"] == ids[len(start) :]
    assert len(answer["content"].split()) > 10


def test_every_type_still_tells_of_lily(shared, tmp_path):
    for type in (TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_K):
        path = tmp_path / "story.gguf"
        run(shared / "models" / "stories3M-q80.bin", path, type=type)
        with Engine(path) as engine:
            assert (
                " named Lily"
                in engine.complete("Once upon a time", max_tokens=16, temperature=0.0)["content"]
            )


# What is written ------------------------------------------------------------------------------------


def test_int8_groups_stay_the_same_numbers_as_q8_0(shared, tmp_path):
    source = shared / "models" / "stories3M-q80.bin"
    run(source, tmp_path / "f32.gguf", type=TensorType.F32)
    run(source, tmp_path / "q8.gguf", type=TensorType.Q8_0)
    exact, packed = open_gguf(tmp_path / "f32.gguf"), open_gguf(tmp_path / "q8.gguf")
    for name, tensor in packed.tensors.items():
        ours = dequantize(packed.data(name), tensor.type, tensor.shape)
        theirs = dequantize(exact.data(name), TensorType.F32, tensor.shape)
        if tensor.type is TensorType.F32:
            assert torch.equal(ours, theirs)
        else:
            assert torch.allclose(ours, theirs, rtol=2**-11, atol=0)  # f16 rounds the scale, nothing else


def float_checkpoint(path: Path, version: int, *, shared: bool = True) -> dict[str, np.ndarray]:
    """Write a random float32 checkpoint as export.py does; return its matrices by GGUF name."""
    dim, hidden, layers, heads, kv_heads, vocabulary, context = 16, 24, 2, 4, 2, 300, 8
    rng = np.random.default_rng(0)
    kv = dim * kv_heads // heads
    shapes = {"attn_q": (dim, dim), "attn_k": (kv, dim), "attn_v": (kv, dim), "attn_output": (dim, dim)}
    shapes |= {"ffn_gate": (hidden, dim), "ffn_down": (dim, hidden), "ffn_up": (hidden, dim)}
    shapes |= {"attn_norm": (dim,), "ffn_norm": (dim,)}
    w = {
        f"blk.{i}.{kind}.weight": rng.normal(size=shape)
        for kind, shape in shapes.items()
        for i in range(layers)
    }
    w |= {"token_embd.weight": rng.normal(size=(vocabulary, dim)), "output_norm.weight": rng.normal(size=dim)}
    if not shared:
        w["output.weight"] = rng.normal(size=(vocabulary, dim))
    w = {name: array.astype(np.float32) for name, array in w.items()}
    attention, feed_forward = list(shapes)[:4], list(shapes)[4:7]
    tail = [] if shared else ["output.weight"]
    by_layer = lambda *kinds: [f"blk.{i}.{kind}.weight" for kind in kinds for i in range(layers)]  # noqa: E731
    if version == 0:
        order = ["token_embd.weight", *by_layer("attn_norm", *attention, "ffn_norm", *feed_forward)]
        order += ["output_norm.weight", "tables", *tail]
        w["tables"] = np.zeros((2, context, dim // heads // 2), np.float32)
        header = struct.pack(
            "<7i", dim, hidden, layers, heads, kv_heads, vocabulary if shared else -vocabulary, context
        )
    else:
        order = [*by_layer("attn_norm", "ffn_norm"), "output_norm.weight", "token_embd.weight"]
        order += [*by_layer(*attention, *feed_forward), *tail]
        header = struct.pack(
            "<4si7iB", b"24ka", 1, dim, hidden, layers, heads, kv_heads, vocabulary, context, shared
        )
        header = header.ljust(256, b"\0")
    path.write_bytes(header + b"".join(w[name].tobytes() for name in order))
    w.pop("tables", None)
    return w


def write_tokens(path: Path, count: int) -> Path:
    texts = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    texts += [b" ", *(b" t%d" % index for index in range(count - len(texts) - 1))]
    entries = (struct.pack("<fi", -float(index), len(text)) + text for index, text in enumerate(texts))
    path.write_bytes(struct.pack("<i", 6) + b"".join(entries))
    return path


@pytest.mark.parametrize("shared_output", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_every_tensor_of_a_float_checkpoint_arrives(tmp_path, version, shared_output):
    weights = float_checkpoint(tmp_path / "model.bin", version, shared=shared_output)
    write_tokens(tmp_path / "tokenizer.bin", 300)
    run(tmp_path / "model.bin", tmp_path / "model.gguf", type=TensorType.F32)
    file = open_gguf(tmp_path / "model.gguf")
    assert set(file.tensors) == set(weights)
    for name, array in weights.items():
        assert np.array_equal(file.data(name).view(np.float32).reshape(array.shape), array), name
    assert file.metadata["llama.attention.head_count_kv"] == 2
    assert file.metadata["tokenizer.ggml.tokens"][258:261] == ["<0xFF>", "▁", "▁t0"]
    with Engine(tmp_path / "model.gguf") as engine:
        assert engine.tokenize("A", add_special=True) == [1, 259, ord("A") + 3]


def test_types_that_do_not_fit_give_way_and_are_named(shared, tmp_path):
    said = run(shared / "models" / "stories260K.bin", tmp_path / "a.gguf", type=TensorType.Q4_K)
    assert said[0] == "Matrices become Q4_K; norms and biases stay F32."
    assert "token_embd.weight and 30 more become Q8_0" in said[1]
    assert "blk.0.ffn_down.weight and 4 more become F16" in said[2]
    types = {name: tensor.type for name, tensor in open_gguf(tmp_path / "a.gguf").tensors.items()}
    assert types["output_norm.weight"] is TensorType.F32
    assert types["blk.0.ffn_down.weight"] is TensorType.F16


@pytest.mark.parametrize(
    ("name", "shape", "wanted", "expected"),
    [
        ("blk.0.attn_q.weight", (64, 256), "Q4_K", "Q4_K"),
        ("token_embd.weight", (64, 256), "Q4_K", "Q8_0"),
        ("output.weight", (64, 256), "Q4_0", "Q8_0"),
        ("output.weight", (64, 256), "BF16", "BF16"),
        ("blk.0.attn_norm.weight", (256,), "Q8_0", "F32"),
    ],
)
def test_embeddings_keep_eight_bits_and_norms_all(name, shape, wanted, expected):
    assert tensor_type(name, shape, TensorType[wanted]) is TensorType[expected]


def test_progress_ends_at_all_bytes_and_stopping_leaves_nothing(shared, tmp_path):
    source, destination = shared / "models" / "stories260K.bin", tmp_path / "a.gguf"
    steps = [event for event in convert(source, destination) if isinstance(event, Progress)]
    assert steps[-1].done == steps[-1].total
    destination.unlink()
    stopped = convert(source, destination)
    while not isinstance(next(stopped), Progress):
        pass
    stopped.close()
    assert list(tmp_path.iterdir()) == []


# Refusals -----------------------------------------------------------------------------------------


def test_bad_sources_are_refused_in_one_sentence(shared, tmp_path):
    model = (shared / "models" / "stories260K.bin").read_bytes()
    quantised = (shared / "models" / "stories3M-q80.bin").read_bytes()
    cases = {
        "has 1,056,539 bytes where its header promises 1,056,540": (model[:-1], FileFormatError),
        "promises 3,352,576": (quantised + b"x", FileFormatError),
        "of version 3, not 0 to 2": (quantised[:4] + b"\3" + quantised[5:], UnsupportedModel),
        "neither a llama2.c checkpoint nor": (
            b"It was a dark and stormy night in the old mill.",
            FileFormatError,
        ),
        "is a GGUF already": (b"GGUF" + model, FileFormatError),
        "neither": (b"", FileFormatError),
    }
    for expected, (raw, error) in cases.items():
        (tmp_path / "bad.bin").write_bytes(raw)
        with pytest.raises(error, match=expected):
            run(tmp_path / "bad.bin", tmp_path / "out.gguf")
        assert not (tmp_path / "out.gguf").exists()
    with pytest.raises(NotFound, match="no file or folder"):
        run(tmp_path / "missing", tmp_path / "out.gguf")


def test_a_vocabulary_must_be_there_and_fit(shared, tmp_path):
    source = tmp_path / "model.bin"
    source.write_bytes((shared / "models" / "stories260K.bin").read_bytes())
    with pytest.raises(NotFound, match="name its file with --tokenizer"):
        run(source, tmp_path / "out.gguf")
    with pytest.raises(FileFormatError, match="is no vocabulary of 512 tokens: it has more"):
        run(source, tmp_path / "out.gguf", tokenizer=shared / "models" / "tok4096.bin")
    (tmp_path / "tokenizer.bin").write_bytes((shared / "models" / "tok512.bin").read_bytes()[:500])
    with pytest.raises(FileFormatError, match="it ends at 3"):
        run(source, tmp_path / "out.gguf")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 255), value=st.binary(min_size=1, max_size=8), version=st.integers(0, 1))
def test_no_damaged_header_does_more_than_be_refused(tmp_path_factory, at, value, version):
    folder = tmp_path_factory.getbasetemp() / f"damaged{version}"
    source = folder / "model.bin"
    if not folder.exists():
        folder.mkdir()
        float_checkpoint(source, version)
        write_tokens(folder / "tokenizer.bin", 300)
    raw = bytearray(source.read_bytes())
    raw[at : at + len(value)] = value
    (folder / "damaged.bin").write_bytes(raw)
    try:
        run(folder / "damaged.bin", folder / "out.gguf", type=TensorType.F32)
        open_gguf(folder / "out.gguf")
    except (FileFormatError, UnsupportedModel, NotFound):
        pass


# The command --------------------------------------------------------------------------------------


def test_the_command_converts_and_names_the_file(shared, tmp_path):
    out = tmp_path / "story.gguf"
    source = str(shared / "models" / "stories260K.bin")
    result = CliRunner().invoke(main, ["convert", source, str(out), "--type", "f16"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    assert "Matrices become F16" in result.stderr
    assert open_gguf(out).tensors["blk.0.attn_q.weight"].type is TensorType.F16


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "nothing"), str(tmp_path / "out.gguf")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: There is no file or folder")
    assert "Traceback" not in result.output


def test_the_command_offers_the_types_that_can_be_written():
    from nightschool.cli.convert import TYPES
    from nightschool.conversion import FILE_TYPES
    from nightschool.quants import PACK

    assert {TensorType[name] for name in TYPES} == set(PACK) == set(FILE_TYPES)
