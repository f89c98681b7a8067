"""What a GGUF file says of its decoder: architecture, sizes, options, and which tensors a LoRA can sit on.

Needs no torch: what plans, lists and refuses reads this, and model computes with it.
"""

import re
from dataclasses import dataclass
from typing import Any

from nightschool.errors import FileFormatError, UnsupportedModel
from nightschool.gguf import GGUFFile

LINEAR = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))\.weight")


@dataclass(frozen=True)
class Family:
    """What an architecture's files do not say of themselves."""

    interleaved: bool = False  # rotary pairs are neighbours (2i, 2i+1) rather than halves (i, i + n/2)
    activation: str = "silu"
    scaled_embedding: bool = False  # embeddings times sqrt(width)
    window_pattern: int = 0  # every n-th layer sees everything, the others a window
    window_rope_base: float = 10_000.0


FAMILIES = {
    "llama": Family(interleaved=True),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma3": Family(activation="gelu", scaled_embedding=True, window_pattern=6),
    "phi3": Family(),
}


@dataclass(frozen=True)
class Config:
    """The shape of a decoder, from its metadata."""

    architecture: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    vocabulary: int
    context: int
    eps: float
    rope_base: float
    rope_scale: float  # positions are multiplied by this
    yarn: bool  # only the slow pairs' positions are, and the rotation grows (arXiv:2309.00071)
    rope_amplitude: float
    original_context: int
    window: int
    attention_scale: float

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]


def read_config(file: GGUFFile) -> Config:
    """Read a decoder's shape.

    Raises:
        UnsupportedModel: the architecture, or one of its options, is not one this program computes.
        FileFormatError: a needed value is missing or makes no sense.
    """
    arch = file.metadata.get("general.architecture")
    if arch not in FAMILIES:
        raise UnsupportedModel(
            f"{file.path.name} holds a model of architecture {arch!r}; "
            f"Nightschool trains {', '.join(FAMILIES)}. Choose a base of one of these."
        )

    def get(key: str, default: Any = None) -> Any:
        value = file.metadata.get(f"{arch}.{key}", default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if value is None or isinstance(value, (list, str)):
            raise FileFormatError(
                f"{file.path.name} has no usable value for {arch}.{key}; fetch the file again."
            )
        return value

    _refuse_options(file, arch)
    width, heads = get("embedding_length"), get("attention.head_count")
    if "token_embd.weight" not in file.tensors:
        raise FileFormatError(f"{file.path.name} holds no token_embd.weight: it is not a whole model.")
    head_dim = get("attention.key_length", width // heads if heads else 0)
    scaling = file.metadata.get(f"{arch}.rope.scaling.type")
    config = Config(
        architecture=arch,
        layers=get("block_count"),
        width=width,
        ffn=get("feed_forward_length"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        rotary_dim=get("rope.dimension_count", head_dim),
        vocabulary=file.tensors["token_embd.weight"].shape[0],
        context=get("context_length"),
        eps=get("attention.layer_norm_rms_epsilon"),
        rope_base=get("rope.freq_base", 10_000.0),
        rope_scale=1.0 / get("rope.scaling.factor", 1.0) if scaling in ("linear", "yarn") else 1.0,
        yarn=scaling == "yarn",
        rope_amplitude=get("rope.scaling.attn_factor", 1.0),
        original_context=get("rope.scaling.original_context_length", get("context_length")),
        window=get("attention.sliding_window", 0) if FAMILIES[arch].window_pattern else 0,
        attention_scale=_attention_scale(arch, get("block_count"), width, heads, head_dim),
    )
    _check(config, file)
    return config


def _attention_scale(arch: str, layers: int, width: int, heads: int, head_dim: int) -> float:
    """1 / sqrt(head width), but for Gemma 3 27B (62 layers), which takes width / heads instead."""
    if arch == "gemma3" and layers == 62:
        return float((width / heads) ** -0.5)
    return float(head_dim**-0.5)


def _refuse_options(file: GGUFFile, arch: str) -> None:
    if file.metadata.get(f"{arch}.expert_count"):
        raise UnsupportedModel(
            f"{file.path.name} is a mixture of experts, which Nightschool does not train yet."
        )
    scaling = file.metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModel(
            f"{file.path.name} scales its rotary positions by {scaling!r}, which is not supported; "
            "take the variant of the model without extended context."
        )


def _check(config: Config, file: GGUFFile) -> None:
    whole = all(
        isinstance(value, int) and 0 < value <= 1 << 24
        for value in (config.layers, config.width, config.ffn, config.heads, config.kv_heads, config.head_dim)
    )
    if (
        not whole
        or config.heads % config.kv_heads
        or config.rotary_dim % 2
        or config.rotary_dim > config.head_dim
    ):
        raise FileFormatError(f"{file.path.name} describes a decoder whose sizes do not fit together.")


def trainable_shapes(file: GGUFFile) -> dict[str, tuple[int, int]]:
    """The tensors a LoRA can sit on, by name: (out, in); read off the file without loading it."""
    return {
        name: (tensor.shape[0], tensor.shape[1])
        for name, tensor in file.tensors.items()
        if LINEAR.fullmatch(name)
    }
