"""Names of models as clients write them, what they mean, and /v1/models.

    ember                              a base
    ember+home@0.5+style               a base with adapters on it, each with its scale
    home                               an adapter, on the base it was trained on
    ft:ember:local:support:a1b2c3      a fine-tuned model (tuned)
    …:memory                           any of these, answering from what is remembered

Only names are understood, never paths: what lies elsewhere on the disk must be registered first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel

from nightschool.adapters import GGUF, NAME, Adapter, Stack, find_adapter, list_adapters, parse_part
from nightschool.errors import NotFound
from nightschool.hub import Base, list_bases
from nightschool.paths import adapters_dir, models_dir
from nightschool.server.problems import ApiError
from nightschool.tuned import PREFIX, read_tuned_name

MEMORY = ":memory"
MAX_NAME = 512
MAX_ADAPTERS = 16
MAX_SCALE = 100.0

router = APIRouter(tags=["models"])


@dataclass(frozen=True)
class Target:
    """What answers a request: a base, adapters on it, and whether it looks things up."""

    name: str  # as the client wrote it
    base: Base
    adapters: tuple[tuple[str, float], ...] = ()
    memory: bool = False

    @property
    def scales(self) -> dict[str, float]:
        return dict(self.adapters)

    @property
    def stack(self) -> Stack:
        return Stack(self.base.name, self.adapters)


def resolve(name: str) -> Target:
    """What a model's name means. Raises ApiError 404 (model_not_found) where it means nothing here."""
    try:
        return _resolved(name)
    except NotFound as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from error


def _resolved(name: str) -> Target:
    if len(name) > MAX_NAME:
        raise NotFound("There is no model of so long a name.")
    text = name.removesuffix(MEMORY)
    bases = _known_bases()
    base, parts = _split(text, bases)
    adapters = tuple(parse_part(part, text) for part in parts)
    names = [adapter for adapter, _ in adapters]
    if len(set(names)) < len(names) or len(names) > MAX_ADAPTERS:
        raise NotFound(f"{text!r} names an adapter twice, or more than {MAX_ADAPTERS} of them.")
    for adapter, scale in adapters:
        if abs(scale) > MAX_SCALE:
            raise NotFound(f"The scale {scale:g} in {text!r} is out of reach: at most {MAX_SCALE:g}.")
        find_adapter(adapter)
    if not base.path.is_file():
        raise NotFound(f"The file of the base {base.name!r} is no longer where it was: pull it again.")
    return Target(name, base, adapters, memory=name.endswith(MEMORY))


def _known_bases() -> Mapping[str, Base]:
    """The bases by name; read anew when the folder has changed, for every request asks."""
    folder = models_dir()
    return _bases_at(folder, folder.stat().st_mtime_ns if folder.is_dir() else 0)


@lru_cache(maxsize=8)
def _bases_at(folder: Path, changed_ns: int) -> Mapping[str, Base]:
    return {base.name: base for base in list_bases()}


def _split(text: str, bases: Mapping[str, Base]) -> tuple[Base, list[str]]:
    """The base, and the adapters' names with their scales. A base's name may have '+' in it."""
    longest_first = sorted(bases, key=lambda name: -len(name))
    for name in longest_first:
        if text == name or text.startswith(name + "+"):
            return bases[name], text[len(name) + 1 :].split("+") if text != name else []
    first, *rest = text.split("+")
    if first.startswith(PREFIX):
        base, adapter = read_tuned_name(first)
        if base in bases and _is_adapter(adapter):
            return bases[base], [adapter, *rest]
    elif _is_adapter(first.partition("@")[0]):
        return _base_of(find_adapter(first.partition("@")[0]), bases), [first, *rest]
    here = ", ".join(bases)
    raise NotFound(f"The model {first!r} does not exist. Here are {here}, and the adapters on them.")


def _is_adapter(name: str) -> bool:
    return bool(NAME.fullmatch(name)) and (adapters_dir() / name / GGUF).is_file()


def _base_of(adapter: Adapter, bases: Mapping[str, Base]) -> Base:
    """The base an adapter was trained on, if it goes by that name here."""
    name = str(adapter.card.get("base", {}).get("name", ""))
    if name not in bases:
        raise NotFound(
            f"The adapter {adapter.name!r} was trained on {name!r}, which is not here: pull it, or name the "
            f"base as in BASE+{adapter.name}."
        )
    return bases[name]


# /v1/models ---------------------------------------------------------------------------------------


class Model(BaseModel):
    """A name that requests may use."""

    id: str
    object: str = "model"
    created: int
    owned_by: str


class Models(BaseModel):
    """All of them: bases, and each adapter on its base."""

    object: str = "list"
    data: list[Model]


@router.get("/v1/models")
def list_models() -> Models:
    """List bases and adapters.

    Stacks (`ember+home@0.5+style`) work too, and are too many to list; checkpoints are listed with their
    fine-tuning job.
    """
    return Models(data=list(_listed()))


@router.get("/v1/models/{name:path}")
def retrieve_model(name: str) -> Model:
    """Say whether a name, a stack's too, means something here."""
    target = resolve(name)
    return Model(id=name, created=_created(target), owned_by="nightschool")


def _listed() -> Iterator[Model]:
    bases = {base.name: base for base in list_bases() if base.path.is_file()}
    for base in bases.values():
        yield Model(id=base.name, created=_created(Target(base.name, base)), owned_by="nightschool")
    for adapter in list_adapters(snapshots=False):
        name = str(adapter.card.get("base", {}).get("name", ""))
        if name in bases:
            target = Target(_served_name(adapter, name), bases[name], ((adapter.name, 1.0),))
            yield Model(id=target.name, created=_created(target), owned_by="local")


def _served_name(adapter: Adapter, base: str) -> str:
    """The name on the card of a fine-tuned model, else base+adapter."""
    served = adapter.card.get("model")
    return served if isinstance(served, str) and served.startswith(PREFIX) else f"{base}+{adapter.name}"


def _created(target: Target) -> int:
    """When its newest file was written."""
    files = [target.base.path, *(adapters_dir() / name / GGUF for name, _ in target.adapters)]
    return int(max(file.stat().st_mtime for file in files if file.is_file()))
