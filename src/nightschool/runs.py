"""One training run from files to a saved adapter: prepared once, resumable at any moment.

    runs/<id>/run.json                what was asked, what was chosen, how far it is
              lessons.npz             the tokenised lessons: a resumed run needs no engine
              checkpoint.safetensors  the adapter in the making, and the optimiser's state
              log.jsonl               a line a step

The id is a hash of everything that decides the result (base, data, settings, name), so the same command finds
its run again. The adapter's bytes do not depend on how often the run was interrupted.
"""

import hashlib
import json
import math
import sys
import time
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nightschool import memory
from nightschool.adapters import Adapter, check_name, find_adapter, load_weights, save_adapter
from nightschool.datasets import load_dataset
from nightschool.decoders import Config, read_config, trainable_shapes
from nightschool.distil import with_expected
from nightschool.engine import Engine
from nightschool.errors import DataError, FileFormatError, NightschoolError, NotFound
from nightschool.events import Event, Notice, TrainStep, Validation
from nightschool.gguf import open_gguf
from nightschool.hub import base_hash, find_base
from nightschool.lessons import Lesson, LessonSet, make_lessons
from nightschool.lora import Lora, choose
from nightschool.paths import atomic_write, runs_dir, write_text
from nightschool.precision import load_model
from nightschool.receipt import Meter
from nightschool.recipes import RECIPES
from nightschool.settings import TrainSettings, as_dict, from_dict
from nightschool.train import Deadline, check_device, keep_freed_memory, resolve, train
from nightschool.tuned import snapshot_name

DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True)
class Order:
    """What a person asks for: examples on a base make an adapter of a name.

    `expected` is a file of distil's, which counts by the weight `distil`. `start` is an adapter to go on
    from. `batch` counts lessons in a step, where the settings leave the tokens open; `lr_multiplier` scales
    the learning rate that is chosen.
    """

    base: str
    data: tuple[Path, ...]
    name: str
    settings: TrainSettings = TrainSettings()
    recipe: str | None = None
    format: str | None = None
    columns: dict[str, str] | None = None
    valid: Path | None = None
    rehearsal: Path | None = None
    expected: Path | None = None
    distil: float = 0.0
    start: str | None = None
    batch: int | None = None
    lr_multiplier: float = 1.0

    @property
    def files(self) -> dict[str, Path]:
        """Every file that decides the result, beside the base and the data."""
        named = {"valid": self.valid, "rehearsal": self.rehearsal, "expected": self.expected}
        if self.start:
            named["start"] = find_adapter(self.start).gguf
        return {name: path for name, path in named.items() if path}


class Run:
    """A run's folder; `state` is run.json."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def lessons(self) -> Path:
        return self.folder / "lessons.npz"

    @property
    def step(self) -> int:
        """Steps done, as the log has it."""
        steps = [line["step"] for line in read_log(self.folder) if "lr" in line]
        return steps[-1] if steps else 0

    def note(self, **changes: Any) -> None:
        """Change run.json."""
        self.state |= changes
        write_text(self.folder / "run.json", json.dumps(self.state, indent=1, default=str) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that a kill cut short is left out."""
    lines = []
    for line in (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def find_run(order: Order, *, resume: bool = False, restart: bool = False, replace_old: bool = False) -> Run:
    """The run of an order: a new one, or the unfinished one that the same order began.

    Raises:
        NightschoolError: it was begun before and neither resume nor restart is given, or the name is taken by
            an adapter that may not be replaced.
        NotFound: there is nothing to resume.
    """
    check_name(order.name)
    identity = _identity(order)
    folder = runs_dir() / identity
    begun = _read_state(folder)
    unfinished = begun is not None and begun["status"] != "done"
    if resume and not unfinished:
        raise NotFound("No unfinished run of this very command was found; leave --resume away to begin it.")
    if unfinished and begun is not None and not restart:
        run = Run(folder, begun)
        if not resume and run.checkpoint.exists():
            raise NightschoolError(
                f"This run was begun before and stands at step {run.step}: "
                "add --resume to go on, or --restart to begin again."
            )
        return run
    if not replace_old and any(True for _ in _taken(order.name)):
        raise NightschoolError(
            f"There is an adapter named {order.name!r} already; "
            "choose another --name, or add --replace to put the new one in its place."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    run = Run(folder, {"id": identity, "status": "begun", "order": asdict(order)})
    run.note()
    return run


def _taken(name: str) -> Iterator[Adapter]:
    try:
        yield find_adapter(name)
    except NotFound:
        return


def _read_state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return state
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _identity(order: Order) -> str:
    apart = {"base", "data", "valid", "rehearsal", "expected"}
    parts = {
        "base": base_hash(find_base(order.base).path),
        "files": [_file_hash(path) for path in order.data],
        "beside": {name: _file_hash(path) for name, path in order.files.items()},
        "order": {k: v for k, v in asdict(order).items() if k not in apart},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NotFound(f"There is no readable file {str(path)!r}.") from error


def carry_out(
    order: Order,
    run: Run,
    *,
    deadline: Deadline | None = None,
    snapshots: int = 0,
    now: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, Adapter]:
    """Do a run to its end; the value is the saved adapter. Closing it between two events saves.

    Args:
        deadline: when to end whatever is left.
        snapshots: of the last so many epochs, the adapter is kept as it was at their ends.
        now: a clock for speeds, which may stand still while the work is held up.
    """
    meter = Meter()
    check_device(order.settings)
    keep_freed_memory()  # before torch starts its threads
    base = find_base(order.base)
    file = open_gguf(base.path)
    config = read_config(file)
    order = replace(order, settings=_with_recipe(order))
    lessons, valid, rehearsal, ctx = yield from _prepared(order, run, base.path, config)
    if "settings" in run.state:  # chosen when the run began; choosing again might choose differently
        settings = from_dict(run.state["settings"])
    else:
        settings = resolve(_with_batch(order, lessons), config, lessons)
        settings = replace(settings, lr=(settings.lr or 0.0) * order.lr_multiplier)
    shapes = choose(trainable_shapes(file), settings.targets)
    longest = max(len(each.tokens) for each in lessons)
    free = None if settings.device == "cpu" else sys.maxsize  # a device's memory is its own
    need = memory.check(config, shapes, settings, longest=longest, free=free)
    yield Notice(_described(settings, lessons, need))
    model = yield from load_model(file, lessons, settings, ctx=ctx)
    settings = replace(settings, precision=model.precision)
    run.note(settings=as_dict(settings), status="training", lessons=len(lessons))
    if order.expected:
        lessons = with_expected(lessons, order.expected)
    assert settings.rank and settings.alpha
    lora = Lora(shapes, rank=settings.rank, alpha=settings.alpha, seed=settings.seed, device=settings.device)
    if order.start:
        lora.load(load_weights(find_adapter(order.start).gguf).weights)
    steps = train(
        model,
        lora,
        lessons,
        settings,
        valid=valid,
        rehearsal=rehearsal,
        checkpoint=run.checkpoint,
        distil=order.distil,
        deadline=deadline,
        now=now,
    )

    def save(name: str) -> Adapter:
        card = _card(order, run, settings, lessons)
        card |= {"rehearsal_lessons": len(rehearsal), "receipt": asdict(meter.receipt())}
        return save_adapter(name, lora.weights(), alpha=lora.alpha, rank=lora.rank, base=file, card=card)

    first = max(1, math.ceil(settings.epochs or 1) - snapshots + 1)  # 0 is the midst of an epoch
    yield from _with_snapshots(
        _logged(steps, run, now), first, lambda step: save(snapshot_name(order.name, step))
    )
    adapter = save(order.name)
    run.note(status="done", adapter=order.name)
    for finished in (run.checkpoint, run.lessons):  # the log and run.json stay
        finished.unlink(missing_ok=True)
    return adapter


def _with_snapshots(events: Iterator[Event], first: int, save: Callable[[int], Adapter]) -> Iterator[Event]:
    """Save after each epoch from number `first` on; not after the last step, which gives the adapter itself.

    The event comes after: whoever stops there finds the snapshot made.
    """
    for event in events:
        if isinstance(event, TrainStep) and event.step < event.total and first <= event.ends_epoch:
            save(event.step)
        yield event


def _with_recipe(order: Order) -> TrainSettings:
    """The recipe's published settings under those that the person gave."""
    if order.recipe is None:
        return order.settings
    recipe, given, plain = RECIPES[order.recipe], as_dict(order.settings), as_dict(TrainSettings())
    names = {field.name for field in fields(recipe)} & set(plain)
    published = {name: getattr(recipe, name) for name in names if given[name] == plain[name]}
    return from_dict(given | published)


def _prepared(
    order: Order, run: Run, base: Path, config: Config
) -> Generator[Event, None, tuple[list[Lesson], list[Lesson], list[Lesson], int]]:
    """Lessons to train, to validate on, to rehearse, and the context of serving; read back if made before."""
    if run.lessons.exists():
        return _load_lessons(run.lessons)
    limit = order.settings.max_tokens or min(DEFAULT_MAX_TOKENS, config.context)
    if limit > config.context:
        raise NightschoolError(
            f"--max-tokens {limit} is more than the {config.context} tokens that {order.base} can read."
        )
    sets = {"train": order.data, "valid": (order.valid,), "rehearsal": (order.rehearsal,)}
    read = {
        name: [
            each
            for path in paths
            if path
            for each in load_dataset(
                path, format=order.format, columns=order.columns if name == "train" else None
            )
        ]
        for name, paths in sets.items()
    }
    made: dict[str, LessonSet] = {}
    with Engine(base) as engine:
        for name, conversations in read.items():
            recipe = RECIPES[order.recipe] if order.recipe else None
            made[name] = yield from make_lessons(conversations, engine, max_tokens=limit, recipe=recipe)
        ctx = engine.settings.ctx
    lessons = made["train"].lessons
    if not lessons:
        raise DataError(f"{order.data[0]} gives nothing to learn: no lesson has a target token.")
    kinds = (lessons, made["valid"].lessons, made["rehearsal"].lessons)
    run.note(cut=made["train"].truncated, left_out=made["train"].dropped)
    _save_lessons(run.lessons, kinds, ctx)
    return *kinds, ctx


def _with_batch(order: Order, lessons: Sequence[Lesson]) -> TrainSettings:
    """A person's or a recipe's batch counts lessons; ours are counted in tokens."""
    batch = order.batch or (RECIPES[order.recipe].batch if order.recipe else None)
    if batch is None or order.settings.batch_tokens is not None:
        return order.settings
    mean = sum(len(each.tokens) for each in lessons) / len(lessons)
    return replace(order.settings, batch_tokens=max(1, round(batch * mean)))


def _save_lessons(path: Path, kinds: Sequence[Sequence[Lesson]], ctx: int) -> None:
    every = [each for kind in kinds for each in kind]
    with atomic_write(path) as draft, draft.open("wb") as file:
        np.savez_compressed(
            file,
            tokens=np.concatenate([each.tokens for each in every]),
            targets=np.concatenate([each.targets for each in every]),
            lengths=np.array([len(each.tokens) for each in every]),
            counts=np.array([len(kind) for kind in kinds]),
            ctx=np.array(ctx),
        )


def _load_lessons(path: Path) -> tuple[list[Lesson], list[Lesson], list[Lesson], int]:
    try:
        with np.load(path, allow_pickle=False) as saved:
            ends = saved["lengths"].cumsum()[:-1]
            pieces = zip(np.split(saved["tokens"], ends), np.split(saved["targets"], ends), strict=True)
            every = iter([Lesson(tokens, targets) for tokens, targets in pieces])
            lessons, valid, rehearsal = (list(islice(every, int(count))) for count in saved["counts"])
            return lessons, valid, rehearsal, int(saved["ctx"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path} is damaged; begin the run again with --restart.") from error


def _described(settings: TrainSettings, lessons: Sequence[Lesson], need: memory.Need) -> str:
    tokens = sum(len(each.tokens) for each in lessons)
    assert settings.lr and settings.epochs
    return (
        f"{len(lessons):,} lessons, {tokens:,} tokens, {settings.epochs:g} epochs in steps of "
        f"{settings.batch_tokens:,} tokens; LoRA rank {settings.rank}, alpha {settings.alpha:g}, on "
        f"{' '.join(settings.targets)}; learning rate {settings.lr:.2g} {settings.schedule}; "
        f"about {need.total / 1e9:.1f} GB of memory"
    )


def _logged(events: Iterator[Event], run: Run, now: Callable[[], float]) -> Iterator[Event]:
    """Pass events on, write the steps to the run's log, and keep what the training says of its end."""
    remarks: list[str] = []
    with (run.folder / "log.jsonl").open("a", encoding="utf-8") as log:
        last = now()
        for event in events:
            if isinstance(event, Notice):
                remarks.append(event.text)
                run.note(remarks=remarks)
            if isinstance(event, (TrainStep, Validation)):
                at = now()
                log.write(json.dumps(asdict(event) | {"seconds": round(at - last, 4)}) + "\n")
                log.flush()
                last = at
            yield event


def _card(order: Order, run: Run, settings: TrainSettings, lessons: Sequence[Lesson]) -> dict[str, Any]:
    """What the adapter will say of its making; base, rank, alpha and date are added when it is saved."""
    log = read_log(run.folder)
    steps = [line for line in log if "lr" in line]
    seconds = sum(line["seconds"] for line in log)
    tokens = sum(line["tokens"] for line in steps)
    return {
        "run": run.folder.name,
        "sources": [{"file": path.name, "sha256": _file_hash(path)} for path in order.data],
        "recipe": order.recipe,
        "settings": as_dict(settings),
        "lessons": len(lessons),
        "lessons_cut": run.state.get("cut", 0),
        "examples_left_out": run.state.get("left_out", 0),
        "training": {
            "steps": max((line["step"] for line in steps), default=0),
            "steps_planned": steps[-1]["total"] if steps else 0,
            "kept_step": _kept_step(log, settings),
            "remarks": run.state.get("remarks", []),
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "tokens_per_s": round(tokens / max(seconds, 1e-9), 1),
            "first_loss": steps[0]["loss"] if steps else None,
            "last_loss": steps[-1]["loss"] if steps else None,
            "validation": [line for line in log if "lr" not in line],
        },
    }


def _kept_step(log: Sequence[dict[str, Any]], settings: TrainSettings) -> int:
    """After which step the adapter was as it was saved: the last one, or where held-out lessons were best."""
    measured = [line for line in log if "lr" not in line]
    if settings.patience and measured:
        return int(min(measured, key=lambda line: (line["loss"], line["step"]))["step"])
    return max((line["step"] for line in log), default=0)
