"""What the program is doing, and which bases are on this machine."""

from functools import lru_cache
from pathlib import Path

import psutil
from fastapi import APIRouter

from nightschool import __version__, jobs, memory
from nightschool.adapters import list_adapters
from nightschool.decoders import read_config, trainable_shapes
from nightschool.errors import FileFormatError, UnsupportedModel
from nightschool.gguf import open_gguf
from nightschool.hub import Base, describe, list_bases
from nightschool.server.database import Store
from nightschool.server.models import resolve
from nightschool.server.own import shapes
from nightschool.server.own.jobs import shown
from nightschool.server.state import Here
from nightschool.settings import TrainSettings
from nightschool.vectors import is_embedding_model

# What a run takes where nothing else is asked for (train.resolve).
RANK, MICRO_TOKENS, LESSON_TOKENS = 16, 1024, 512

router = APIRouter()


@router.get("/status")
def status(here: Here, db: Store) -> shapes.Status:
    """Say what the program is doing."""
    job = jobs.current(db)
    (sources,) = db.execute("select count(*) from sources where collection = ''").fetchone()
    return shapes.Status(
        version=__version__,
        default_model=here.settings.model,
        machine=shapes.Machine(
            memory_bytes=psutil.virtual_memory().total,
            free_memory_bytes=memory.free_bytes(),
            cores=psutil.cpu_count(logical=False) or 1,
        ),
        job=shown(db, job) if job else None,
        chatting=here.engines.chatting.is_active,
        sources=sources,
        adapters=len(list_adapters(snapshots=False)),
    )


@router.get("/bases")
def bases(here: Here) -> shapes.Bases:
    """List the bases on this machine, and what training each of them would take."""
    default = resolve(here.settings.model).base.name
    return shapes.Bases(bases=[describe_base(base, is_default=base.name == default) for base in list_bases()])


def describe_base(base: Base, *, is_default: bool = False) -> shapes.Base:
    """A base as its file describes it, or with a problem where that cannot be read."""
    try:
        state = base.path.stat()
        found = _read(base, state.st_mtime_ns, state.st_size)
    except (FileFormatError, UnsupportedModel, OSError):
        found = _unreadable(base)
    return found.model_copy(update={"is_default": is_default})


def _unreadable(base: Base) -> shapes.Base:
    return shapes.Base(
        name=base.name,
        bytes=0,
        parameters=0,
        context=0,
        architecture="?",
        quantisation="?",
        is_default=False,
        is_embedder=False,
        can_train=False,
        memory_needed_bytes=None,
        problem="Its file is damaged, or no longer where it was: pull it again.",
    )


@lru_cache(maxsize=64)
def _read(base: Base, modified_ns: int, size_bytes: int) -> shapes.Base:
    """What a base's file says; read again only when it has changed."""
    info = describe(base)
    is_embedder = is_embedding_model(base)
    need, problem = (None, None) if is_embedder else _need(base.path)
    return shapes.Base(
        name=info.name,
        bytes=info.size_bytes,
        parameters=info.parameters,
        context=info.context,
        architecture=info.architecture,
        quantisation=info.type,
        is_default=False,
        is_embedder=is_embedder,
        can_train=need is not None and need <= psutil.virtual_memory().total,
        memory_needed_bytes=need,
        problem=problem,
    )


def _need(path: Path) -> tuple[int | None, str | None]:
    """Bytes that training a base takes, or why it cannot be trained."""
    file = open_gguf(path)
    try:
        config = read_config(file)
    except UnsupportedModel as error:
        return None, str(error)
    lesson = min(LESSON_TOKENS, config.context)
    settings = TrainSettings(rank=RANK, micro_tokens=MICRO_TOKENS, max_tokens=lesson)
    return memory.estimate(config, trainable_shapes(file), settings, precision="int8").total, None
