"""huggingface: what transformers saves, converted, is in llama.cpp what it is in transformers.

Each architecture and each kind of rotary scaling is a tiny random model: every next-token log-probability of
llama.cpp must be that of transformers.
"""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from nightschool.conversion import write_model
from nightschool.convert import convert
from nightschool.engine import Engine
from nightschool.errors import FileFormatError, NotFound, UnsupportedModel
from nightschool.events import Notice, Progress
from nightschool.gguf import TensorType, open_gguf
from nightschool.huggingface import pair_rows, read_huggingface

TEXT = """The night school opens at seven. Its teacher, Mrs Odell, keeps 12 lamps and 304 books in a mill.
On Mondays they learn to read maps; on Fridays they sing. "Who has the key?" asked Tom. "I've got it,"
said Ida, "it's under the mat." They'd walked 7 miles through snow - and nobody complained! Über alle Maße
schön: naïve café.
"""
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|begin|>", "<|end|>", "<|pad|>"]


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens in the manner of Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def rope(type: str, theta: float = 10_000.0, **values: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": type, "rope_theta": theta, **values}}


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
GEMMA_ROPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
}
GEMMA = {
    "num_hidden_layers": 7,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
} | GEMMA_ROPE


def longrope(original: int) -> dict[str, object]:
    """A context longer than `original` takes the long factors, in llama.cpp at any length of text."""
    parameters = rope(
        "longrope",
        original_max_position_embeddings=original,
        long_factor=[1.0 + i / 2 for i in range(6)],
        short_factor=[1.0 + i / 20 for i in range(6)],
        partial_rotary_factor=0.75,
    )
    return parameters | {"original_max_position_embeddings": original, "max_position_embeddings": 512}


MODELS = {
    "llama": (transformers.LlamaConfig, {}),
    "llama with biases": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama 3": (
        transformers.LlamaConfig,
        {"head_dim": 32, "tie_word_embeddings": True} | rope("llama3", **LLAMA3),
    ),
    "llama linear": (transformers.LlamaConfig, rope("linear", factor=4.0)),
    "mistral": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 32}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": True} | rope("default", 1_000_000.0)),
    "qwen2 yarn": (transformers.Qwen2Config, rope("yarn", **YARN)),
    "qwen2 yarn with its own factor": (transformers.Qwen2Config, rope("yarn", **YARN, attention_factor=1.3)),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
    "gemma3": (transformers.Gemma3TextConfig, GEMMA | {"tie_word_embeddings": True}),
    "phi3": (transformers.Phi3Config, {}),
    "phi3 longrope, long": (transformers.Phi3Config, longrope(16)),
    "phi3 longrope, short": (transformers.Phi3Config, longrope(256)),
}


def make_model(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """Random weights, loud enough that the predictions differ, with norms that are not all one."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(
                    0, (2.0 if "embed" in name or "lm_head" in name else 1.0) / parameter.shape[-1] ** 0.5
                )
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def save(folder: Path, kind: str, **changes: object) -> tuple[Path, transformers.PreTrainedModel]:
    make, values = MODELS[kind]
    tokenizer = byte_tokenizer()
    model = make_model(make(**(SMALL | values | {"vocab_size": len(tokenizer) + 5} | changes)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model


def run(source: Path, destination: Path, type: TensorType = TensorType.F32) -> list[str]:
    """Convert and return what was said."""
    return [event.text for event in convert(source, destination, type=type) if isinstance(event, Notice)]


def log_probabilities(engine: Engine, tokens: list[int], vocabulary: int) -> torch.Tensor:
    """Of every next token after `tokens`, by llama.cpp."""
    # llama-server reports nothing for an answer that is half a character, so "a" is made the answer.
    letter = engine.tokenize("a")[-1]
    body = {"prompt": tokens, "n_predict": 1, "n_probs": vocabulary, "logit_bias": [[letter, 1000.0]]}
    answer = engine.request("/completion", body, stack={})
    found = torch.full((vocabulary,), torch.nan)
    for entry in answer["completion_probabilities"][0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


def assert_predicts_like(path: Path, model: transformers.PreTrainedModel, *, tolerance: float = 0.02) -> None:
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(3, 380, (48,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)  # (48, vocabulary)
    with Engine(path, ctx=256) as engine:
        for length in (1, 2, 17, 48):
            found = log_probabilities(engine, tokens[:length], vocabulary)

            assert torch.allclose(found, expected[length - 1], atol=tolerance), length
    assert expected[0].sub(expected[-1]).abs().max() > 1  # the test could tell


@pytest.mark.parametrize("kind", MODELS)
def test_llama_cpp_predicts_what_transformers_predicts(tmp_path, kind):
    folder, model = save(tmp_path / "model", kind)
    run(folder, tmp_path / "model.gguf")
    assert_predicts_like(tmp_path / "model.gguf", model)


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K"])
def test_every_type_predicts_nearly_the_same(tmp_path, type):
    folder, model = save(tmp_path / "model", "llama", hidden_size=256, intermediate_size=512)
    run(folder, tmp_path / "model.gguf", TensorType[type])
    tolerance = {"F16": 0.05, "BF16": 0.1, "Q8_0": 0.25}.get(type, 3.5)
    assert_predicts_like(tmp_path / "model.gguf", model, tolerance=tolerance)


def test_the_text_part_of_a_model_that_sees_is_converted(tmp_path):
    tokenizer = byte_tokenizer()
    text = SMALL | GEMMA | {"vocab_size": len(tokenizer), "tie_word_embeddings": True}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, image_token_index=2
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run(tmp_path / "model", tmp_path / "model.gguf")
    file = open_gguf(tmp_path / "model.gguf")
    assert file.metadata["general.architecture"] == "gemma3"
    assert not any("vision" in name or "mm" in name.split(".")[0] for name in file.tensors)
    ids = [5, 6, 7, 8]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    with Engine(tmp_path / "model.gguf") as engine:
        assert torch.allclose(log_probabilities(engine, ids, len(tokenizer)), expected, atol=0.02)


def test_a_model_in_many_files_and_bf16_is_the_model_in_one(tmp_path):
    whole, model = save(tmp_path / "whole", "qwen2")
    model.bfloat16().save_pretrained(whole)
    shards = shutil.copytree(whole, tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    model.save_pretrained(shards, max_shard_size="40KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    run(whole, tmp_path / "whole.gguf", TensorType.BF16)
    run(shards, tmp_path / "shards.gguf", TensorType.BF16)
    first, second = open_gguf(tmp_path / "whole.gguf"), open_gguf(tmp_path / "shards.gguf")
    assert list(first.tensors) == list(second.tensors)
    assert all((first.data(name) == second.data(name)).all() for name in first.tensors)
    stored = load_file(whole / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert first.data("blk.1.ffn_up.weight").tobytes() == stored.view(torch.uint8).numpy().tobytes()


def test_older_configs_name_rotary_settings_differently(tmp_path):
    folder, _ = save(tmp_path / "model", "llama 3")
    run(folder, tmp_path / "new.gguf")
    config = json.loads((folder / "config.json").read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters
    (folder / "config.json").write_text(json.dumps(config))
    run(folder, tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


def test_rows_of_a_head_are_brought_from_halves_into_pairs():
    halves = torch.tensor([[0.0], [1], [2], [10], [11], [12]]).repeat(2, 1)
    halves[6:] += 100
    pairs = [0, 10, 1, 11, 2, 12]
    assert pair_rows(halves, 2).flatten().tolist() == pairs + [100 + row for row in pairs]


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    folder, _ = save(tmp_path / "model", "llama")
    source = read_huggingface(folder)
    alive: list[weakref.ref[torch.Tensor]] = []

    def watched(load):
        def watching():
            assert sum(ref() is not None for ref in alive) <= 1  # the one before may still be on its way out
            tensor = load().clone()
            alive.append(weakref.ref(tensor))
            return tensor

        return watching

    tensors = [replace(tensor, load=watched(tensor.load)) for tensor in source.tensors]
    list(write_model(replace(source, tensors=tensors), tmp_path / "a.gguf", type=TensorType.Q8_0))
    assert len(alive) == len(tensors)


def test_a_window_that_llama_cpp_leaves_out_is_mentioned(tmp_path):
    folder, _ = save(tmp_path / "model", "mistral", sliding_window=32)
    assert any("without its window of 32 tokens" in text for text in run(folder, tmp_path / "a.gguf"))
    shutil.rmtree(folder)
    folder, _ = save(folder, "mistral")
    assert not any("without its window" in text for text in run(folder, tmp_path / "a.gguf"))


def test_progress_is_counted_in_bytes(tmp_path):
    folder, _ = save(tmp_path / "model", "llama")
    steps = [event for event in convert(folder, tmp_path / "a.gguf") if isinstance(event, Progress)]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total


# Refusals -------------------------------------------------------------------------------------------


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in weights.items() if v is not None}, folder / "model.safetensors")


DAMAGES = {
    "is a BertModel; what can be converted is": lambda f: change_config(f, architectures=["BertModel"]),
    "is a None": lambda f: change_config(f, architectures=None),
    "'large' for 'hidden_size'": lambda f: change_config(f, hidden_size="large"),
    "None for 'num_hidden_layers'": lambda f: change_config(f, num_hidden_layers=None),
    "has a form that is not known .TypeError": lambda f: change_config(f, text_config=7),
    "is quantised .gptq.": lambda f: change_config(f, quantization_config={"quant_method": "gptq"}),
    "activation 'relu'": lambda f: change_config(f, hidden_act="relu"),
    "rotary scaling 'dynamic'": lambda f: change_config(f, rope_parameters={"rope_type": "dynamic"}),
    "shape .405, 64., not .405, 32.": lambda f: change_config(f, hidden_size=32),
    "'layers.2.self_attn.q_proj.weight' is missing": lambda f: change_config(f, num_hidden_layers=3),
    "no place for the tensor 'layers.1": lambda f: change_config(f, num_hidden_layers=1),
    "'lm_head.weight' is missing": lambda f: change_weights(f, **{"lm_head.weight": None}),
    "'norm.weight' is missing": lambda f: change_weights(f, **{"model.norm.weight": None}),
    "no place for the tensor 'extra'": lambda f: change_weights(f, extra=torch.zeros(2)),
    "is stored as I8": lambda f: change_weights(
        f, **{"model.norm.weight": torch.zeros(64, dtype=torch.int8)}
    ),
    "no .*safetensors": lambda f: (f / "model.safetensors").unlink(),
    "is damaged or incomplete": lambda f: (f / "model.safetensors").write_bytes(bytes(100)),
    "cannot be read as JSON": lambda f: (f / "config.json").write_text("{"),
    "no file .*config.json": lambda f: (f / "config.json").unlink(),
    "no tokenizer.json and no tokenizer.model": lambda f: (f / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("expected", DAMAGES)
def test_what_cannot_be_converted_is_said_in_one_sentence(tmp_path, expected):
    folder, _ = save(tmp_path / "model", "llama")
    DAMAGES[expected](folder)
    with pytest.raises((FileFormatError, NotFound, UnsupportedModel), match=expected) as refusal:
        run(folder, tmp_path / "model.gguf")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is not 32"),
        ({"layer_types": ["full_attention"] * 7}, "pattern of five to one"),
        ({"attn_logit_softcapping": 50.0}, "caps attention logits"),
    ],
)
def test_a_gemma_that_llama_cpp_would_run_differently_is_refused(tmp_path, changes, expected):
    folder, _ = save(tmp_path / "model", "gemma3")
    change_config(folder, **changes)
    with pytest.raises(UnsupportedModel, match=expected):
        run(folder, tmp_path / "model.gguf")


def test_a_file_that_the_index_names_must_be_there(tmp_path):
    folder, model = save(tmp_path / "model", "llama")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(NotFound, match="says that it belongs to the model"):
        run(folder, tmp_path / "model.gguf")
