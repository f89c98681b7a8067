"""The decoder against llama.cpp, the definition of right: next-token log-probabilities on the same file.

llama.cpp rounds what it multiplies: keys and values to float16, and beside a quantised matrix the activations
to 8 bits. So the two agree to about 2e-3 on F32 and to a few percent on quantised files; TOLERANCE states
what is allowed for the likeliest tokens. Our own precisions are then held against our own exact one, which
tests/test_quants.py ties to the file.
"""

import numpy as np
import pytest
import torch
from tiny import ARCHS, write_tiny, write_tiny_adapter

from nightschool.attention import Documents
from nightschool.decoders import trainable_shapes
from nightschool.engine import Engine
from nightschool.errors import FileFormatError, UnsupportedModel
from nightschool.gguf import open_gguf, write_gguf
from nightschool.lora import stacked
from nightschool.model import Model

TOLERANCE = {"F32": 0.01, "Q8_0": 0.08, "Q4_0": 0.08, "Q4_K": 0.15}  # nats, root mean square
LENGTHS = (1, 7, 23, 60)  # the last ones reach past the tiny Gemma's window of 16


CTX = 256  # llama.cpp rounds smaller ones up to this


def options(arch):
    """Phi-3's tiny long-context variant starts stretching beyond CTX."""
    return {"original_context": CTX} if arch == "phi3-longrope" else {}


def prompts(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 250, length).tolist() for length in LENGTHS]


def ours(model, texts, pairs=None):
    """Log-probabilities of the token after each text, all texts packed in one stream: (texts, vocabulary)."""
    lengths = [len(text) for text in texts]
    tokens = torch.tensor([token for text in texts for token in text])
    positions = torch.cat([torch.arange(length) for length in lengths])
    hidden = model.hidden(tokens, positions, Documents.of(lengths), pairs)
    last = torch.tensor(lengths).cumsum(0) - 1
    return model.logits(hidden[last]).log_softmax(-1)


def difference(engine, texts, logs, stack=None):
    """Root mean square over the 40 tokens that llama.cpp finds likeliest after each text."""
    gaps = []
    for text, row in zip(texts, logs, strict=True):
        answer = engine.complete(text, stack=stack, max_tokens=1, n_probs=40, temperature=0.0)
        top = answer["completion_probabilities"][0]["top_logprobs"]
        gaps += [entry["logprob"] - float(row[entry["id"]]) for entry in top]
    return float(np.sqrt(np.mean(np.square(gaps))))


@pytest.mark.parametrize("type", list(TOLERANCE))
@pytest.mark.parametrize("arch", ARCHS)
def test_log_probabilities_agree_with_llama_cpp(tmp_path, arch, type):
    path = write_tiny(tmp_path / "tiny.gguf", arch, type, **options(arch))
    model = Model(open_gguf(path), "fp32", ctx=CTX)
    with Engine(path, ctx=CTX) as engine:
        gap = difference(engine, prompts(), ours(model, prompts()))
    assert gap < TOLERANCE[type]


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_stretched_positions_agree_with_llama_cpp(tmp_path, arch, scaling):
    source = open_gguf(write_tiny(tmp_path / "tiny.gguf", arch))
    plain = ours(Model(source), prompts())
    keys = {"type": scaling, "factor": 4.0, "original_context_length": 64}
    metadata = source.metadata | {f"{arch}.rope.scaling.{key}": value for key, value in keys.items()}
    tensors = [(n, t.type, t.shape, source.data(n)) for n, t in source.tensors.items()]
    write_gguf(tmp_path / "long.gguf", metadata, tensors, types=source.metadata_types)
    stretched = ours(Model(open_gguf(tmp_path / "long.gguf")), prompts())
    assert (stretched - plain).abs().mean() > 0.05
    with Engine(tmp_path / "long.gguf", ctx=CTX) as engine:
        assert difference(engine, prompts(), stretched) < TOLERANCE["F32"]


def test_long_contexts_take_the_long_rotary_factors(tmp_path):
    path = write_tiny(tmp_path / "tiny.gguf", "phi3-longrope", **options("phi3-longrope"))
    with Engine(path, ctx=512) as engine:
        long = ours(Model(open_gguf(path), "fp32", ctx=512), prompts())
        short = ours(Model(open_gguf(path), "fp32", ctx=CTX), prompts())
        assert difference(engine, prompts(), long) < TOLERANCE["F32"]
        assert difference(engine, prompts(), short) > 2 * TOLERANCE["F32"]


@pytest.mark.parametrize("arch", ARCHS)
def test_an_adapter_and_a_stack_agree_with_llama_cpp(tmp_path, arch):
    base = write_tiny(tmp_path / "tiny.gguf", arch, **options(arch))
    one = write_tiny_adapter(tmp_path / "one.gguf", base, seed=1)
    two = write_tiny_adapter(tmp_path / "two.gguf", base, seed=2)
    model = Model(open_gguf(base), "fp32", ctx=CTX)
    bare = ours(model, prompts())
    with Engine(base, adapters={"one": one, "two": two}, ctx=CTX) as engine:
        for stack in ({"one": 1.0}, {"one": 0.5, "two": 0.7}):
            pairs = stacked([(raw_adapter(tmp_path / f"{n}.gguf"), 8.0, scale) for n, scale in stack.items()])
            mine = ours(model, prompts(), pairs)
            assert difference(engine, prompts(), mine, stack) < TOLERANCE["F32"]
            assert (mine - bare).abs().mean() > 0.1


def raw_adapter(path):
    """A saved adapter's arrays by the tensor they sit on."""
    file = open_gguf(path)
    arrays = {
        name: file.data(name).view(np.float32).reshape(tensor.shape) for name, tensor in file.tensors.items()
    }
    names = {name.rsplit(".", 1)[0] for name in arrays}
    return {name: (arrays[f"{name}.lora_a"].copy(), arrays[f"{name}.lora_b"].copy()) for name in names}


@pytest.mark.parametrize(
    ("precision", "allowed"), [("packed", 1e-5), ("bf16", 0.03), ("int8", 0.08), ("fp64", 1e-5)]
)
@pytest.mark.parametrize("arch", ARCHS)
def test_precisions_agree_with_fp32(tmp_path, arch, precision, allowed):
    file = open_gguf(write_tiny(tmp_path / "tiny.gguf", arch, "Q8_0"))
    exact = ours(Model(file, "fp32"), prompts())
    other = ours(Model(file, precision), prompts())
    assert (other - exact).norm() / exact.norm() < allowed


def test_a_packed_stream_gives_each_document_what_it_gets_alone(tmp_path):
    model = Model(open_gguf(write_tiny(tmp_path / "tiny.gguf", "gemma3")), "fp32")
    together = ours(model, prompts())
    alone = torch.cat([ours(model, [text]) for text in prompts()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_int8_with_a_loud_channel_needs_its_outliers(tmp_path):
    from nightschool.ops import Int8Matrix

    torch.manual_seed(0)
    weight, x = torch.randn(64, 128), torch.randn(32, 128)
    x[:, 5] *= 300
    exact = x @ weight.t()
    matrix = Int8Matrix(lambda start, stop: weight[start:stop].clone(), (64, 128))
    quiet = exact - x[:, 5:6] @ weight[:, 5:6].t()

    def error():
        return (matrix.forward(x) - exact).norm() / quiet.norm()

    plain = error()
    matrix.set_outliers(torch.tensor([5]))
    assert error() < plain / 2


def test_other_architectures_are_refused_by_name(tmp_path):
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "mamba"}, [])
    with pytest.raises(UnsupportedModel, match="'mamba'.*llama, qwen2"):
        Model(open_gguf(tmp_path / "a.gguf"))


def test_a_model_without_a_tensor_is_refused(tmp_path):
    source = open_gguf(write_tiny(tmp_path / "tiny.gguf", "llama"))
    kept = [
        (name, tensor.type, tensor.shape, source.data(name))
        for name, tensor in source.tensors.items()
        if name != "blk.1.ffn_down.weight"
    ]
    write_gguf(tmp_path / "short.gguf", source.metadata, kept)
    with pytest.raises(FileFormatError, match="lacks the tensor blk.1.ffn_down.weight"):
        Model(open_gguf(tmp_path / "short.gguf"))


@pytest.mark.parametrize("arch", ARCHS)
def test_what_can_be_trained_is_known_before_loading(tmp_path, arch):
    file = open_gguf(write_tiny(tmp_path / "tiny.gguf", arch))
    assert trainable_shapes(file) == Model(file).trainable()
