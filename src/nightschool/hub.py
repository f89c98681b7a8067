"""Bases on this machine, by name, and how they get one: pulled from a hub, or registered where they lie.

A base is `ember` (shipped), a file in the home, a file registered where it lies, or simply a path. Beside
each pulled or registered one stands `models/<name>.json`: where it came from, its checksum, its size.
"""

import difflib
import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nightschool.download import RemoteFile, check_space, fetch
from nightschool.errors import FileFormatError, NameTaken, NightschoolError, NotFound
from nightschool.events import Event, Notice
from nightschool.gguf import GGUFFile, open_gguf, tensor_hash
from nightschool.paths import home, models_dir, package_data, write_text

SHIPPED = "ember"


@dataclass(frozen=True)
class Base:
    """A model file and the name it goes by here; `source` says where it came from."""

    name: str
    path: Path
    source: str


@dataclass(frozen=True)
class BaseInfo:
    """What a base is; `type` is the one that holds most of its bytes, `parameters` counts all its weights."""

    name: str
    architecture: str
    parameters: int
    type: str
    size_bytes: int
    context: int
    path: str
    source: str


def list_bases() -> list[Base]:
    """Every base that has a name: the shipped one, then the others in order of their names."""
    bases = {record.stem: _recorded(record) for record in models_dir().glob("*.json")}
    for file in models_dir().glob("*.gguf"):
        bases.setdefault(file.stem, Base(file.stem, file, "put into the home by hand"))
    first = [Base(SHIPPED, _shipped(), "comes with nightschool")] if _shipped().exists() else []
    return first + [bases[name] for name in sorted(bases) if name != SHIPPED]


def _shipped() -> Path:
    return package_data(f"{SHIPPED}/{SHIPPED}.gguf")


def _recorded(record: Path) -> Base:
    try:
        entry = json.loads(record.read_text(encoding="utf-8"))
        return Base(record.stem, models_dir() / entry["path"], entry["source"])
    except (ValueError, TypeError, LookupError) as error:
        raise FileFormatError(f"The record {str(record)!r} is damaged: remove it, and pull again.") from error


def find_base(name: str) -> Base:
    """The base of a name, or of a path to a GGUF file. Raises NotFound, with the names that there are."""
    bases = {base.name: base for base in list_bases()}
    base = bases.get(name)
    if base is None and name.endswith(".gguf") and Path(name).expanduser().is_file():
        path = Path(name).expanduser().resolve()
        base = Base(path.stem, path, "a file")
    if base is None:
        raise NotFound(f"There is no base {name!r}. {_instead(name, list(bases))}")
    if not base.path.is_file():
        raise NotFound(f"The base {name!r} was at {str(base.path)!r}, and is there no longer.")
    return base


def _instead(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    here = known(names) or "There are none here yet."
    return f"{here} `nightschool pull` fetches others."


def known(names: Sequence[str]) -> str:
    """What there is, in a sentence; nothing where there is nothing."""
    verb = "is" if len(names) == 1 else "are"
    return f"Here {verb} {', '.join(names)}." if names else ""


def path_of_hash(identity: str) -> Path | None:
    """Where a base of that identity was last seen, if it still is there."""
    for key, value in _hashes().items():
        path = Path(key.rsplit("|", 2)[0])
        if value == identity and path.is_file() and base_hash(path) == identity:
            return path
    return None


def describe(base: Base) -> BaseInfo:
    """Read a base's header. Raises FileFormatError or UnsupportedModel for a bad file."""
    file = open_gguf(base.path)
    architecture = str(file.metadata.get("general.architecture", "?"))
    return BaseInfo(
        name=base.name,
        architecture=architecture,
        parameters=sum(prod(tensor.shape) for tensor in file.tensors.values()),
        type=_main_type(file),
        size_bytes=base.path.stat().st_size,
        context=int(file.metadata.get(f"{architecture}.context_length", 0)),
        path=str(base.path),
        source=base.source,
    )


def _main_type(file: GGUFFile) -> str:
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.size_bytes
    return max(sizes, key=lambda name: sizes[name], default="?")


def base_hash(path: Path) -> str:
    """The identity of a base (gguf.tensor_hash), remembered in the home while the file is untouched."""
    path = path.resolve()
    state = path.stat()
    key = f"{path}|{state.st_size}|{state.st_mtime_ns}"
    hashes = _hashes()
    if key not in hashes:
        hashes = {old: value for old, value in hashes.items() if not old.startswith(f"{path}|")}
        hashes[key] = tensor_hash(open_gguf(path))
        write_text(_memory(), json.dumps(hashes, indent=1))
    return hashes[key]


def _memory() -> Path:
    return home() / "base_hashes.json"


def _hashes() -> dict[str, str]:
    """path|size|time → identity, of every base that was looked at."""
    try:
        found: dict[str, str] = json.loads(_memory().read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):  # not there yet, or not worth keeping
        return {}


def register(path: Path, name: str | None = None) -> Base:
    """Name a file that stays where it is. Raises FileFormatError for what is no model, and NameTaken."""
    path = path.expanduser().resolve()
    _check_model(path)
    name = _free_name(name or path.stem, path=path)
    _record(name, path=str(path), source="a file registered where it lies", size_bytes=path.stat().st_size)
    return Base(name, path, "a file registered where it lies")


def _check_model(path: Path) -> None:
    file = open_gguf(path)
    if file.metadata.get("general.type", "model") != "model" or "general.architecture" not in file.metadata:
        kind = file.metadata.get("general.type", "file without an architecture")
        raise FileFormatError(f"{str(path)!r} is a GGUF {kind}, not a model.")
    if "tokenizer.ggml.tokens" not in file.metadata:
        raise FileFormatError(f"{str(path)!r} has no vocabulary, so it cannot be talked to by itself.")


def _free_name(wanted: str, *, path: Path) -> str:
    """`wanted` without what a stack would misread. Raises when it belongs to another file than `path`."""
    name = _clean(wanted)
    taken = {base.name: base.path for base in list_bases()} | {SHIPPED: _shipped()}
    if name in taken and taken[name] != path:
        raise NameTaken(f"The name {name!r} belongs to {str(taken[name])!r}: choose another with --name.")
    return name


def _clean(wanted: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-.")
    if not name:
        raise NameTaken(f"{wanted!r} cannot be a name: use letters, digits, '.', '_' and '-'.")
    return name


def _record(name: str, **entry: Any) -> None:
    write_text(models_dir() / f"{name}.json", json.dumps(entry, indent=1) + "\n")


def pull(file: RemoteFile, *, name: str | None = None) -> Generator[Event, None, Base]:
    """Download a model into the home and give it a name; `base = yield from pull(…)`.

    Raises DownloadError when the bytes do not come or are not the promised ones, FileFormatError when they
    are no model, and NameTaken. A download that was stopped goes on with the same call.
    """
    target = models_dir() / f"{_clean(name or Path(file.path).stem)}.gguf"
    name = _free_name(target.stem, path=target)
    if target.exists():
        if _recorded_sha256(name) != file.sha256:
            raise NameTaken(f"The name {name!r} belongs to another file: choose another with --name.")
        yield Notice(f"{name} is here already: {target}")
        return find_base(name)
    part = models_dir() / f".{file.sha256[:16]}.part"
    check_space(file, part)
    yield from fetch(file, part)
    _check_model_or_remove(part)
    part.replace(target)
    source = f"{file.hub}/{file.repo}/{file.path}"
    _record(name, path=target.name, source=source, size_bytes=file.size_bytes, sha256=file.sha256)
    yield Notice(f"{name} is ready: {target}")
    return Base(name, target, source)


def _recorded_sha256(name: str) -> str | None:
    record = models_dir() / f"{name}.json"
    return json.loads(record.read_text(encoding="utf-8")).get("sha256") if record.exists() else None


def _check_model_or_remove(part: Path) -> None:
    try:
        _check_model(part)
    except NightschoolError:
        part.unlink()
        raise
