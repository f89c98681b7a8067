"""The shelf of adapters: saved whole or not at all, listed, renamed, removed, stacked, bound to their base.

    adapters/<name>/adapter.gguf               what llama.cpp loads, and what this program reads back
                    adapter_model.safetensors  the same for PEFT, with adapter_config.json
                    card.json                  what the adapter says of itself

An adapter carries the hash of its base's tensors (`nightschool.base_hash` in its metadata): llama.cpp would
load it onto any base of the same shape, and talk nonsense. A stack is written `base+work@0.5+style`.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nightschool.errors import AdapterMismatch, FileFormatError, NotFound, UnsupportedModel
from nightschool.gguf import GGUFFile, TensorToWrite, TensorType, open_gguf, write_gguf
from nightschool.hub import base_hash, find_base, known, path_of_hash
from nightschool.paths import adapters_dir
from nightschool.peft import CONFIG, MODEL, Array, Weights, write_peft
from nightschool.tuned import SNAPSHOT, is_snapshot

GGUF, CARD = "adapter.gguf", "card.json"
FILES = {GGUF, CARD, CONFIG, MODEL}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HASH_KEY = "nightschool.base_hash"


@dataclass(frozen=True)
class Adapter:
    """An adapter on the shelf, or in any folder; the card is what was written when it was saved."""

    name: str
    folder: Path
    card: dict[str, Any]

    @property
    def gguf(self) -> Path:
        """The file that llama.cpp loads."""
        return self.folder / GGUF

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        return sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())


@dataclass(frozen=True)
class LoraWeights:
    """An adapter's numbers: name → A (rank, in), B (out, rank); it adds alpha / rank · B A to each matrix."""

    weights: Weights
    alpha: float
    rank: int
    architecture: str
    base_hash: str | None


@dataclass(frozen=True)
class Stack:
    """A base and the adapters on it with their scales, in order."""

    base: str
    adapters: tuple[tuple[str, float], ...] = ()

    @property
    def scales(self) -> dict[str, float]:
        """What the engine calls a stack: name → scale."""
        return dict(self.adapters)

    def __str__(self) -> str:
        return "+".join([self.base, *(name + scale_text(scale) for name, scale in self.adapters)])


def scale_text(scale: float) -> str:
    return "" if scale == 1 else f"@{scale:g}"


# Names


def parse_stack(text: str) -> Stack:
    """`base+work@0.5+style` → Stack("base", (("work", 0.5), ("style", 1.0))). The base may be a path.

    Raises NotFound for what cannot be a stack; whether its parts are there is another question.
    """
    base, parts = split_base(text)
    adapters = tuple(parse_part(part, text) for part in parts)
    names = [name for name, _ in adapters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise NotFound(f"{text!r} names the adapter {twice!r} twice: give it once, with one scale.")
    return Stack(base, adapters)


def split_base(text: str) -> tuple[str, list[str]]:
    """The base and the rest; a '+' that belongs to an existing file's path is part of the base."""
    parts = text.split("+")
    for count in range(len(parts), 0, -1):
        base = "+".join(parts[:count])
        if os.path.isfile(os.path.expanduser(base)):  # unlike Path's, never raises
            return base, parts[count:]
    if not parts[0]:
        raise NotFound(
            f"{text!r} names no base. A stack is written BASE+ADAPTER@SCALE, as in ember+work@0.5."
        )
    return parts[0], parts[1:]


def parse_part(part: str, text: str) -> tuple[str, float]:
    name, at, number = part.partition("@")
    try:
        scale = float(number) if at else 1.0
    except ValueError:
        scale = float("nan")
    if not NAME.fullmatch(name) or not isfinite(scale):
        raise NotFound(
            f"{part!r} in {text!r} is not an adapter and its scale. A stack is written BASE+ADAPTER@SCALE, "
            "as in ember+work@0.5."
        )
    return name, scale


def as_stack(text: str) -> Stack:
    """A stack as `parse_stack` reads it, or the name of one adapter: that, on the base it was trained on."""
    if (adapters_dir() / text / GGUF).is_file() and NAME.fullmatch(text):
        base = find_adapter(text).card.get("base", {})
        return Stack(usable_base(base), ((text, 1.0),))
    return parse_stack(text)


def usable_base(base: Mapping[str, str]) -> str:
    """The name of an adapter's base if it goes by that here, else the path where that base was seen."""
    name = base.get("name", "")
    try:
        find_base(name)
    except NotFound:
        return str(path_of_hash(base.get("hash", "")) or base.get("path", name))
    return name


def check_name(name: str) -> None:
    """Raise unless `name` can be an adapter's: no path, and nothing a stack would misread."""
    if not NAME.fullmatch(name):
        raise FileFormatError(
            f"{name!r} cannot be the name of an adapter: use up to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit."
        )


# The shelf


def list_adapters(*, snapshots: bool = True) -> list[Adapter]:
    """Every adapter on the shelf, in order of their names; people are shown `snapshots` with their job."""
    if not adapters_dir().is_dir():
        return []
    for left in adapters_dir().glob(".*.old"):
        put_back(adapters_dir() / left.name[1:-4])
    folders = (folder for folder in adapters_dir().iterdir() if NAME.fullmatch(folder.name))
    return [
        Adapter(folder.name, folder, readable_card(folder))
        for folder in sorted(folders)
        if (folder / GGUF).is_file() and (snapshots or not is_snapshot(folder.name))
    ]


def with_snapshots(name: str) -> list[Adapter]:
    """The adapter of that name, if it is there, and what a job kept of it at the ends of epochs."""
    return [
        adapter
        for adapter in list_adapters()
        if adapter.name == name or (adapter.name.startswith(name + SNAPSHOT) and is_snapshot(adapter.name))
    ]


def readable_card(folder: Path) -> dict[str, Any]:
    try:
        return read_card(folder)
    except FileFormatError as error:  # one damaged card must not hide the other adapters
        return {"problem": str(error)}


def find_adapter(name: str) -> Adapter:
    """The adapter of exactly that name. Raises NotFound, with the names that there are."""
    folder = adapters_dir() / name
    put_back(folder)
    if not NAME.fullmatch(name) or not (folder / GGUF).is_file():
        here = known([adapter.name for adapter in list_adapters(snapshots=False)])
        here = here or "There are none yet: `nightschool train` makes them."
        raise NotFound(f"There is no adapter {name!r}. {here}")
    return Adapter(name, folder, read_card(folder))


def adapter_path(name: str) -> Path:
    """The GGUF file of an adapter on the shelf."""
    return find_adapter(name).gguf


def stack_paths(stack: Stack) -> dict[str, Path]:
    """The files of a stack's adapters, by name: what the engine loads."""
    return {name: adapter_path(name) for name, _ in stack.adapters}


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an adapter; empty where it has none, as adapters made elsewhere."""
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FileFormatError(f"The card {str(path)!r} is damaged: mend it or remove it.") from error
    if not isinstance(card, dict):
        raise FileFormatError(f"The card {str(path)!r} is not a JSON object: mend it or remove it.")
    return card


def rename_adapter(old: str, new: str) -> Adapter:
    """Give an adapter another name, one that is free."""
    adapter = find_adapter(old)
    check_name(new)
    target = adapters_dir() / new
    if target.exists():
        raise FileFormatError(
            f"There is an adapter {new!r} already: remove it first, or choose another name."
        )
    adapter.folder.rename(target)
    return Adapter(new, target, adapter.card)


def remove_adapter(name: str) -> None:
    """Delete an adapter; a folder that holds anything else is left alone."""
    adapter = find_adapter(name)
    check_only_adapter(adapter.folder)
    gone = adapter.folder.with_name(f".{name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    adapter.folder.rename(gone)  # from one moment to the next it is no adapter
    shutil.rmtree(gone)


def check_only_adapter(folder: Path) -> None:
    """Raise unless the folder may be deleted: it is no link, and holds nothing but an adapter's files."""
    others = sorted({entry.name for entry in folder.iterdir()} - FILES)
    if others or folder.is_symlink():
        what = f"also holds {', '.join(others[:5])}" if others else "is a link"
        raise FileFormatError(f"{str(folder)!r} {what}: it is left as it is. Remove it by hand.")


# Saving and loading


def save_adapter(
    where: str | Path,
    weights: Weights,
    *,
    alpha: float,
    rank: int,
    base: GGUFFile,
    card: Mapping[str, Any],
    half: bool = False,
) -> Adapter:
    """Write the four files of an adapter; whatever was there under that name is replaced.

    Args:
        where: a name on the shelf, or a folder elsewhere.
        weights: GGUF tensor name → A (rank, in), B (out, rank), float32.
        base: what it was trained on; the adapter will fit no other.
        card: what is known of the training; base, rank, alpha and date are added.
        half: store float16 in the GGUF file: half the size, three digits.
    """
    folder = adapters_dir() / where if isinstance(where, str) else where
    check_name(folder.name)
    if folder.is_dir():
        check_only_adapter(folder)
    identity = base_hash(base.path)
    check_shapes(weights, base, name=folder.name)
    lora = LoraWeights(weights, alpha, rank, str(base.metadata["general.architecture"]), identity)
    full_card = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": {"name": base.path.stem},
        **card,
    }
    full_card["base"] = {**full_card["base"], "hash": identity, "architecture": lora.architecture}
    full_card |= {
        "rank": rank,
        "alpha": alpha,
        "parameters": sum(a.size + b.size for a, b in weights.values()),
    }
    with whole_folder(folder) as draft:
        write_lora(draft / GGUF, lora, name=folder.name, half=half)
        source = str(base.metadata.get("general.name") or full_card["base"]["name"])
        write_peft(draft, weights, alpha=alpha, rank=rank, metadata=base.metadata, base=source)
        (draft / CARD).write_text(json.dumps(full_card, indent=1) + "\n", encoding="utf-8")
    return Adapter(folder.name, folder, full_card)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a draft folder; it takes the name when the block ends well, else it is removed.

    A folder cannot be replaced in one step as a file can: the old one is moved aside first, and `put_back`
    mends a kill between the two.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    put_back(folder)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for path in [*draft.iterdir(), draft]:
            sync(path)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of files is on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_back(folder: Path) -> None:
    """Clear up after a kill in the middle of `whole_folder`: the old one aside, drafts of dead processes."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    for draft in folder.parent.glob(f".{folder.name}.*.draft"):
        process = draft.name.split(".")[-2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(draft, ignore_errors=True)


def write_lora(path: Path, lora: LoraWeights, *, name: str, half: bool = False) -> None:
    """Write an adapter as GGUF: `<tensor>.lora_a`, `<tensor>.lora_b`, alpha; same numbers, same bytes."""
    metadata: dict[str, Any] = {
        "general.architecture": lora.architecture,
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(lora.alpha),
    }
    if lora.base_hash:
        metadata[HASH_KEY] = lora.base_hash
    dtype, type = (np.float16, TensorType.F16) if half else (np.float32, TensorType.F32)
    tensors: list[TensorToWrite] = []
    for tensor in sorted(lora.weights):
        for suffix, array in zip((".lora_a", ".lora_b"), lora.weights[tensor], strict=True):
            tensors.append((tensor + suffix, type, array.shape, np.ascontiguousarray(array, dtype)))
    write_gguf(path, metadata, tensors)


def load_weights(path: Path) -> LoraWeights:
    """Read an adapter's GGUF (or the folder it lies in), made here or by llama.cpp's converter.

    Raises FileFormatError, or UnsupportedModel for weights that are not F32 or F16.
    """
    file = open_gguf(path / GGUF if path.is_dir() else path)
    if file.metadata.get("general.type") != "adapter" or file.metadata.get("adapter.type") != "lora":
        raise FileFormatError(f"{str(file.path)!r} is a GGUF file, but not a LoRA adapter.")
    names = sorted({name.rsplit(".", 1)[0] for name in file.tensors})
    missing = [name for name in names for end in ("a", "b") if f"{name}.lora_{end}" not in file.tensors]
    if missing or len(file.tensors) != 2 * len(names):
        raise FileFormatError(f"{str(file.path)!r} does not hold pairs of '.lora_a' and '.lora_b' only.")
    weights = {
        name: (read_array(file, f"{name}.lora_a"), read_array(file, f"{name}.lora_b")) for name in names
    }
    for name, (a, b) in weights.items():
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise FileFormatError(
                f"The pair for {name!r} in {str(file.path)!r} has shapes {a.shape}, {b.shape}."
            )
    rank = max((len(a) for a, _ in weights.values()), default=0)
    return LoraWeights(
        weights=weights,
        alpha=float(file.metadata.get("adapter.lora.alpha", 0))
        or float(rank),  # llama.cpp: no alpha, scale 1
        rank=rank,
        architecture=str(file.metadata.get("general.architecture")),
        base_hash=file.metadata.get(HASH_KEY),
    )


def read_array(file: GGUFFile, name: str) -> Array:
    tensor = file.tensors[name]
    dtype = {TensorType.F32: np.float32, TensorType.F16: np.float16}.get(tensor.type)
    if dtype is None:
        raise UnsupportedModel(
            f"{name!r} in {str(file.path)!r} is {tensor.type.name}; adapters are read as F32 or F16."
        )
    return file.data(name).view(dtype).reshape(tensor.shape).astype(np.float32)


# Fitting and stacking


def check_fits(adapter: Path, base: GGUFFile) -> None:
    """Raise AdapterMismatch, in a sentence, unless the adapter was trained on this very base.

    One that does not say what it was trained on (made elsewhere) must have its architecture and shapes.
    """
    path = adapter / GGUF if adapter.is_dir() else adapter
    lora = load_weights(path)
    name = path.parent.name if path.name == GGUF else path.stem
    ours = str(base.metadata.get("general.architecture"))
    if lora.architecture != ours:
        raise AdapterMismatch(
            f"The adapter {name!r} is for {lora.architecture!r} models, and {base.path.name!r} is {ours!r}. "
            "Use it with the base it was trained on."
        )
    if lora.base_hash is not None and lora.base_hash != base_hash(base.path):
        trained = read_card(path.parent).get("base", {}).get("name", "another base")
        raise AdapterMismatch(
            f"The adapter {name!r} was trained on {trained}, not on the file {base.path.name!r}: their "
            "tensors differ. Use it with that base, or train it anew on this one."
        )
    check_shapes(lora.weights, base, name=name)


def check_shapes(weights: Weights, base: GGUFFile, *, name: str) -> None:
    """Raise AdapterMismatch unless every pair sits beside a matrix of its shape."""
    for tensor, (a, b) in weights.items():
        there = base.tensors.get(tensor)
        if there is None:
            raise AdapterMismatch(
                f"The adapter {name!r} changes {tensor!r}, which {base.path.name!r} does not have."
            )
        if there.shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
            raise AdapterMismatch(
                f"The adapter {name!r} is {b.shape[0]} × {a.shape[1]} at {tensor!r}, and {base.path.name!r} "
                f"has {' × '.join(map(str, there.shape))}."
            )


def combine(adapters: Sequence[tuple[LoraWeights, float]]) -> LoraWeights:
    """Several adapters with scales as one that does the same: ranks end to end, scales inside B.

    sum of s·alpha/rank·B A = [s·alpha/rank·B …] [A …]ᵀ; tensors that one lacks are filled with zeros, so that
    every pair has the same rank and alpha / rank is 1.
    """
    first = adapters[0][0]
    if len(adapters) == 1 and adapters[0][1] == 1:
        return first
    if any(lora.base_hash != first.base_hash for lora, _ in adapters):
        raise AdapterMismatch("These adapters were trained on different bases and cannot be made into one.")
    rank = sum(lora.rank for lora, _ in adapters)
    weights = {}
    for name in sorted({name for lora, _ in adapters for name in lora.weights}):
        pairs = [
            (*lora.weights[name], scale * lora.alpha) for lora, scale in adapters if name in lora.weights
        ]
        a = np.concatenate([a for a, _, _ in pairs])  # (ranks, in)
        b = np.concatenate(
            [b * np.float32(factor / len(a)) for a, b, factor in pairs], axis=1
        )  # (out, ranks)
        short = rank - len(a)
        weights[name] = (np.pad(a, ((0, short), (0, 0))), np.pad(b, ((0, 0), (0, short))))
    return LoraWeights(weights, float(rank), rank, first.architecture, first.base_hash)
