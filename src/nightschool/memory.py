"""How much memory a training run needs, and what to change when there is not enough.

The estimate adds up what is held: one compute copy of each matrix, the output matrix, the adapter with its
gradient and two moments, and what each layer keeps of each token for the backward pass (ops.py saves it, so
the terms below follow that file). bench/bench_train.py compares it with the measured peak.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from nightschool.decoders import Config
from nightschool.errors import NotEnoughMemory
from nightschool.settings import TrainSettings

# What the arithmetic keeps to.
KEEP_LENGTH = 256  # documents up to this keep their attention probabilities for the backward
LOSS_TILE = 1 << 24  # logits held at once: 16 M elements, 64 MB

BYTES = {"int8": 1.0, "bf16": 2.0, "fp32": 4.0, "fp64": 8.0, "packed": 0.0}  # of a frozen weight
PROGRAM = 450 << 20  # Python, torch and its libraries
SPARE = 0.08  # share of the free memory that is left alone
SMALLEST_PIECE = 64


@dataclass(frozen=True)
class Need:
    """Bytes by what they are for."""

    weights: int
    adapter: int
    activations: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.other


def estimate(
    config: Config, shapes: Mapping[str, tuple[int, int]], settings: TrainSettings, *, precision: str
) -> Need:
    """What a run with resolved settings will hold at its peak.

    Args:
        shapes: the matrices that get adapters: name → (out, in).
        precision: of the frozen weights; "auto" counts as bf16, the largest that auto tries before fp32.
    """
    assert settings.rank and settings.micro_tokens
    width, heads = config.width, config.heads
    projections = (heads + 2 * config.kv_heads) * config.head_dim
    layer_weights = width * (projections + heads * config.head_dim + 3 * config.ffn)
    kind = "bf16" if precision == "auto" else precision
    head = config.vocabulary * width * (2 if kind in ("int8", "bf16") else BYTES[kind])
    small = 2 if kind in ("int8", "bf16") else 4  # bytes of what products keep
    tokens, longest = settings.micro_tokens, min(settings.max_tokens or KEEP_LENGTH, KEEP_LENGTH)
    kept = (
        8 * width + small * (2 * width + projections + heads * config.head_dim + config.ffn) + 8 * config.ffn
    )
    kept += small * heads * longest
    layers = 1 if settings.recompute else config.layers
    activations = tokens * (kept * layers + 4 * width * (config.layers if settings.recompute else 0))
    passing = tokens * (12 * width + 4 * projections + 32 * config.ffn) + 4 * 4 * LOSS_TILE
    adapter = 20 * sum(settings.rank * (out + inner) for out, inner in shapes.values())
    return Need(
        weights=int(config.layers * layer_weights * BYTES[kind] + head),
        adapter=adapter,
        activations=activations + passing,
        other=PROGRAM,
    )


def free_bytes() -> int:
    """What this process may still take: the available memory, or less where a control group says so."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free


def check(
    config: Config,
    shapes: Mapping[str, tuple[int, int]],
    settings: TrainSettings,
    *,
    longest: int,
    free: int | None = None,
) -> Need:
    """Refuse a run that does not fit into the free memory, and say what would.

    Raises:
        NotEnoughMemory: with what is needed, what is free, and the first change of settings that fits.
    """
    room = int((free_bytes() if free is None else free) * (1 - SPARE))
    need = estimate(config, shapes, settings, precision=settings.precision)
    if need.total <= room:
        return need
    told = f"This run needs about {_gb(need.total)} of memory, and {_gb(room)} is free."
    for change, words in _changes(settings, longest):
        smaller = estimate(config, shapes, change, precision=change.precision)
        if smaller.total <= room:
            raise NotEnoughMemory(f"{told} With {words} it takes {_gb(smaller.total)}.")
    raise NotEnoughMemory(f"{told} No setting makes it fit: close other programs, or take a smaller base.")


def _changes(settings: TrainSettings, longest: int) -> Iterator[tuple[TrainSettings, str]]:
    """Ever smaller runs, least painful first, each with the flags that ask for it."""
    assert settings.micro_tokens
    small = max(longest, SMALLEST_PIECE)
    int8 = replace(settings, precision="int8")
    yield int8, "--precision int8"
    half = max(small, settings.micro_tokens // 2)
    yield replace(int8, micro_tokens=half), f"--precision int8 --micro-tokens {half}"
    yield (
        replace(int8, micro_tokens=half, recompute=True),
        f"--precision int8 --micro-tokens {half} --recompute",
    )
    least = replace(int8, micro_tokens=small, recompute=True)
    yield least, f"--precision int8 --micro-tokens {small} --recompute"
    packed = replace(least, precision="packed")
    yield packed, f"--precision packed --micro-tokens {small} --recompute (slow)"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
