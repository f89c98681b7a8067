"""Read a Hugging Face folder: config.json, *.safetensors and a tokenizer become a SourceModel.

Llama, Mistral, Qwen2, Qwen3, Gemma 3 (the text part) and Phi-3. Names, keys and the changes to weights follow
llama.cpp's own converter (conversion/ in its repository) and what its src/models expect:

- GGUF's llama architecture rotates neighbours of a head, Hugging Face one half with the other: the rows of Q
  and K are put in pairs.
- Gemma's norms multiply by 1 + weight: the 1 is added here.
- Llama 3's and LongRoPE's factors for rotary frequencies, settings there, are tensors here.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log, pi, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nightschool.conversion import SourceModel, SourceTensor
from nightschool.errors import FileFormatError, NotFound, UnsupportedModel
from nightschool.vocabulary import read_json, read_vocabulary

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Phi3ForCausalLM": "phi3",
}
# What a config may leave out: the defaults of transformers' configuration classes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "qwen2": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768},
    "qwen3": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128},
    "gemma3": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    "phi3": {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
}
ACTIVATIONS = {"gemma3": {"gelu_pytorch_tanh"}}
FLOATS = ("F32", "F16", "BF16", "F64")
WINDOW_PERIOD = 6  # of Gemma 3's layers, each sixth sees everything; llama.cpp knows no other pattern
LAYERS_27B = 62  # llama.cpp takes Gemma 3 with so many layers for the 27B and scales its queries differently


@dataclass(frozen=True)
class Config:
    """The numbers of a config.json that conversion needs, checked; `raw` has the rest."""

    architecture: str
    raw: dict[str, Any]
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    rope: dict[str, Any]
    local_rope_base: float | None

    @property
    def rotary(self) -> int:
        """Rotated dimensions of a head."""
        share = self.rope.get("partial_rotary_factor") or self.raw.get("partial_rotary_factor") or 1.0
        return int(share * self.head_dim)


def read_huggingface(folder: Path) -> SourceModel:
    """Read a folder; tensors load when they are written.

    Raises NotFound, FileFormatError, or UnsupportedModel, with one sentence about what is missing or unknown.
    """
    try:
        config = read_config(folder)
        stored = _index(folder)
        tensors = list(_tensors(config, stored)) + _rope_tensors(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{str(folder / 'config.json')!r} has a form that is not known ({error!r})."
        ) from error
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    vocabulary, notices = read_vocabulary(folder, config.raw, rows)
    metadata = _general(folder, config) | _numbers(config, rows) | vocabulary
    return SourceModel(metadata, tensors, (*_window_notice(config), *notices))


# Configuration ------------------------------------------------------------------------------------


def read_config(folder: Path) -> Config:
    """Read and check config.json."""
    raw = read_json(folder / "config.json")
    names = raw.get("architectures") or [None]
    architecture = ARCHITECTURES.get(names[0])
    if architecture is None:
        raise UnsupportedModel(
            f"{str(folder)!r} is a {names[0]}; what can be converted is {', '.join(ARCHITECTURES)}."
        )
    raw = DEFAULTS[architecture] | raw | raw.get("text_config", {})
    if quantized := raw.get("quantization_config"):
        method = quantized.get("quant_method")
        raise UnsupportedModel(f"{str(folder)!r} is quantised ({method}); convert the original model.")
    heads = _whole(raw, "num_attention_heads")
    width = _whole(raw, "hidden_size")
    config = Config(
        architecture=architecture,
        raw=raw,
        width=width,
        layers=_whole(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=_whole(raw, "num_key_value_heads", heads),
        head_dim=_whole(raw, "head_dim", width // heads),
        ffn=_whole(raw, "intermediate_size"),
        context=_whole(raw, "max_position_embeddings"),
        rope=_rope(raw),
        local_rope_base=_local_rope_base(raw) if architecture == "gemma3" else None,
    )
    _check(config)
    return config


def _whole(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = default if raw.get(key) is None else raw[key]
    if not isinstance(value, int) or not 0 < value < 1 << 31:
        raise FileFormatError(f"Its config.json has {value!r} for {key!r}, where a whole number belongs.")
    return value


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings in the form of transformers 5: rope_type, rope_theta and what the type needs."""
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    found = dict(found.get("full_attention") or found)
    found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
    found["rope_theta"] = found.get("rope_theta") or raw.get("rope_theta") or 10_000.0
    original = raw.get("original_max_position_embeddings") or raw["max_position_embeddings"]
    found["original"] = found.get("original_max_position_embeddings") or original
    return found


def _local_rope_base(raw: dict[str, Any]) -> float:
    """Of Gemma 3's layers with a window."""
    parameters = raw.get("rope_parameters") or {}
    return float((parameters.get("sliding_attention") or {}).get("rope_theta") or raw["rope_local_base_freq"])


def _check(config: Config) -> None:
    """Refuse settings that llama.cpp would silently run differently."""
    raw, architecture = config.raw, config.architecture
    activation = raw.get("hidden_activation") or raw.get("hidden_act") or ""
    if activation and activation not in ACTIVATIONS.get(architecture, {"silu", "swish"}):
        raise UnsupportedModel(
            f"Its activation {activation!r} is not the one llama.cpp uses for {architecture}."
        )
    known = {"default", "linear", "yarn", "llama3"} | (
        {"longrope", "su"} if architecture == "phi3" else set()
    )
    if config.rope["rope_type"] not in known:
        raise UnsupportedModel(
            f"Its rotary scaling {config.rope['rope_type']!r} is not known for {architecture}."
        )
    if architecture == "gemma3":
        _check_gemma(config)


def _check_gemma(config: Config) -> None:
    raw = config.raw
    kinds = raw.get("layer_types") or []
    pattern = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or WINDOW_PERIOD
    full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
    if pattern != WINDOW_PERIOD or (
        kinds and full != list(range(WINDOW_PERIOD - 1, config.layers, WINDOW_PERIOD))
    ):
        raise UnsupportedModel(
            "Its layers with and without a window do not follow Gemma 3's pattern of five to one."
        )
    expected = config.width // config.heads if config.layers == LAYERS_27B else config.head_dim
    if raw["query_pre_attn_scalar"] != expected:
        raise UnsupportedModel(f"Its query_pre_attn_scalar is not {expected}, the one llama.cpp uses.")
    if raw.get("attn_logit_softcapping"):
        raise UnsupportedModel("It caps attention logits, which llama.cpp does not do for Gemma 3.")


def _window_notice(config: Config) -> list[str]:
    raw = config.raw
    window = raw.get("sliding_window")
    used = raw.get("use_sliding_window", config.architecture in ("llama", "phi3"))
    if config.architecture == "gemma3" or not window or not used or window >= config.context:
        return []
    return [
        f"llama.cpp runs this model without its window of {window} tokens: longer texts may differ a little."
    ]


# Metadata -----------------------------------------------------------------------------------------


def _general(folder: Path, config: Config) -> dict[str, Any]:
    name = str(config.raw.get("_name_or_path") or "").rstrip("/").rpartition("/")[2] or folder.resolve().name
    return {"general.architecture": config.architecture, "general.type": "model", "general.name": name}


def _numbers(config: Config, rows: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "vocab_size": rows,
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.raw["rms_norm_eps"]),
        "rope.dimension_count": config.rotary,
        "rope.freq_base": float(config.rope["rope_theta"]),
    }
    numbers |= _rope_numbers(config)
    if config.architecture == "gemma3":
        numbers["attention.sliding_window"] = config.raw["sliding_window"]
        numbers["rope.freq_base_swa"] = config.local_rope_base
        if cap := config.raw.get("final_logit_softcapping"):
            numbers["final_logit_softcapping"] = float(cap)
    if config.architecture == "phi3":
        # 0 says: none; without the key llama.cpp guesses one.
        numbers["attention.sliding_window"] = config.raw.get("sliding_window") or 0
    return {f"{config.architecture}.{key}": value for key, value in numbers.items()}


def _rope_numbers(config: Config) -> dict[str, Any]:
    rope, kind = config.rope, config.rope["rope_type"]
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        return _yarn_numbers(rope)
    if config.architecture == "phi3":
        numbers: dict[str, Any] = {"rope.scaling.original_context_length": rope["original"]}
        if kind != "default":
            numbers["rope.scaling.attn_factor"] = _longrope_attention(config)
        return numbers
    return {}


def _yarn_numbers(rope: dict[str, Any]) -> dict[str, Any]:
    factor = float(rope["factor"])
    numbers: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": rope["original"],
    }
    if wanted := rope.get("attention_factor"):
        # llama.cpp multiplies by 1 + 0.1 log(factor) in any case, transformers only where nothing is given.
        numbers["rope.scaling.attn_factor"] = float(wanted) / (1 + 0.1 * log(factor))
    for name in ("beta_fast", "beta_slow"):
        if rope.get(name) is not None:
            numbers[f"rope.scaling.yarn_{name}"] = float(rope[name])
    return numbers


def _longrope_attention(config: Config) -> float:
    """What LongRoPE multiplies queries and keys by (https://arxiv.org/abs/2402.13753)."""
    if given := config.rope.get("attention_factor"):
        return float(given)
    scale = config.context / config.rope["original"]
    return sqrt(1 + log(scale) / log(config.rope["original"])) if scale > 1 else 1.0


def _rope_tensors(config: Config) -> list[SourceTensor]:
    """The factors by which rotary frequencies are divided, one for each pair."""
    rope, kind = config.rope, config.rope["rope_type"]
    factors: dict[str, list[float]] = {}
    if kind == "llama3":
        factors["rope_freqs.weight"] = _llama3_factors(config)
    if kind in ("longrope", "su"):
        factors["rope_factors_long.weight"] = rope["long_factor"]
        factors["rope_factors_short.weight"] = rope["short_factor"]
    tensors = []
    for name, values in factors.items():
        if len(values) != config.rotary // 2:
            raise FileFormatError(
                f"Its config has {len(values)} rotary factors for {config.rotary // 2} pairs."
            )
        tensor = torch.tensor(values, dtype=torch.float32)
        tensors.append(SourceTensor(name, (len(values),), tensor.clone))
    return tensors


def _llama3_factors(config: Config) -> list[float]:
    """1 for short wavelengths, `factor` for long ones, else a blend (transformers: modeling_rope_utils)."""
    rope = config.rope
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    factors = []
    for pair in range(config.rotary // 2):
        wavelength = 2 * pi * rope["rope_theta"] ** (2 * pair / config.rotary)
        turns = rope["original"] / wavelength  # how often it turns within the context it was trained for
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - blend) / factor + blend))
    return factors


# Tensors ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    type: str

    def load(self) -> torch.Tensor:
        with safe_open(self.file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(self.name)
        return tensor


def _index(folder: Path) -> dict[str, Stored]:
    """The text model's tensors in the folder's safetensors files, by their names within it."""
    found: dict[str, Stored] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    part = file.get_slice(name)
                    stored = Stored(path, name, tuple(part.get_shape()), part.get_dtype())
                    if short := _short_name(name):
                        found[short] = stored
        except (SafetensorError, OSError) as error:
            raise FileFormatError(f"{str(path)!r} is damaged or incomplete: {error}.") from error
    return found


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        files = [folder / Path(name).name for name in names]  # beside the index, wherever it may point
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise NotFound(
            f"There are no *.safetensors in {str(folder)!r}; save the model in that format to convert it."
        )
    for path in files:
        if not path.is_file():
            raise NotFound(f"{str(path)!r} is missing; {index.name} says that it belongs to the model.")
    return files


def _short_name(name: str) -> str:
    """The name within the text model: "layers.0.…", "embed_tokens.weight"; "" for all that is not of it."""
    if re.match(r"(model\.)?(vision_tower|multi_modal_projector)\.", name) or name.endswith(
        "rotary_emb.inv_freq"
    ):
        return ""
    return re.sub(r"^(language_model\.model\.|model\.language_model\.|language_model\.|model\.)", "", name)


def _tensors(config: Config, stored: dict[str, Stored]) -> Iterator[SourceTensor]:
    """Everything under GGUF's names. Raises FileFormatError for what is missing or has another shape."""
    left = dict(stored)
    if _is_tied(config):
        left.pop("lm_head.weight", None)
    for name, their_name, shape, needed in _expected(config, stored):
        found = left.pop(their_name, None)
        if found is None and needed:
            raise FileFormatError(f"The tensor {their_name!r} is missing; the folder is not complete.")
        if found is None:
            continue
        if found.shape != shape:
            raise FileFormatError(
                f"Tensor {found.name!r} has the shape {found.shape}, not {shape} as the config says."
            )
        if found.type not in FLOATS:
            raise UnsupportedModel(
                f"Tensor {found.name!r} is stored as {found.type}; convert the original model."
            )
        yield SourceTensor(name, shape, _changed(config, name, found))
    if left:
        raise UnsupportedModel(f"GGUF's {config.architecture} has no place for the tensor {min(left)!r}.")


Expected = Iterator[tuple[str, str, tuple[int, ...], bool]]


def _expected(config: Config, stored: dict[str, Stored]) -> Expected:
    """GGUF's name, Hugging Face's, the shape, and whether it must be there."""
    if "embed_tokens.weight" not in stored:
        raise FileFormatError("The tensor 'embed_tokens.weight' is missing; the folder is not complete.")
    embedding = (stored["embed_tokens.weight"].shape[0], config.width)
    yield "token_embd.weight", "embed_tokens.weight", embedding, True
    yield "output_norm.weight", "norm.weight", (config.width,), True
    yield "output.weight", "lm_head.weight", embedding, not _is_tied(config)
    for layer in range(config.layers):
        for ours, theirs, shape, needed in _expected_in_layer(config):
            yield f"blk.{layer}.{ours}", f"layers.{layer}.{theirs}", shape, needed


def _is_tied(config: Config) -> bool:
    """Whether the embedding serves as output matrix too; llama.cpp then finds no output.weight."""
    return bool(config.raw.get("tie_word_embeddings", False))


def _expected_in_layer(config: Config) -> Expected:
    width, ffn = config.width, config.ffn
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    linear = {
        "attn_q": ("self_attn.q_proj", queries, width),
        "attn_k": ("self_attn.k_proj", keys, width),
        "attn_v": ("self_attn.v_proj", keys, width),
        "attn_output": ("self_attn.o_proj", width, queries),
        "ffn_gate": ("mlp.gate_proj", ffn, width),
        "ffn_up": ("mlp.up_proj", ffn, width),
        "ffn_down": ("mlp.down_proj", width, ffn),
    }
    if config.architecture == "phi3":
        for name in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            del linear[name]
        linear["attn_qkv"] = ("self_attn.qkv_proj", queries + 2 * keys, width)
        linear["ffn_up"] = ("mlp.gate_up_proj", 2 * ffn, width)
    for name, (theirs, rows, columns) in linear.items():
        yield f"{name}.weight", f"{theirs}.weight", (rows, columns), True
        if config.architecture == "llama" or (
            config.architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v")
        ):
            yield f"{name}.bias", f"{theirs}.bias", (rows,), config.architecture == "qwen2"
    for name, theirs in _norms(config.architecture).items():
        shape = (config.head_dim,) if theirs.startswith("self_attn.") else (width,)
        yield f"{name}.weight", f"{theirs}.weight", shape, True


def _norms(architecture: str) -> dict[str, str]:
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    if architecture in ("qwen3", "gemma3"):
        norms |= {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
    if architecture == "gemma3":
        norms |= {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    return norms


def _changed(config: Config, name: str, stored: Stored) -> Callable[[], torch.Tensor]:
    """How to load a tensor in the form GGUF wants."""
    if config.architecture == "llama" and ".attn_q." in name:
        return lambda: pair_rows(stored.load(), config.heads)
    if config.architecture == "llama" and ".attn_k." in name:
        return lambda: pair_rows(stored.load(), config.kv_heads)
    if config.architecture == "gemma3" and name.endswith("norm.weight"):
        return lambda: stored.load().float() + 1
    return stored.load


def pair_rows(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Bring the rows of each head from halves (0 … n/2, n/2 … n) into pairs (0, n/2, 1, n/2 + 1, …)."""
    return x.view(heads, 2, -1, *x.shape[1:]).transpose(1, 2).reshape(x.shape)
