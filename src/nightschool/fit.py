"""What this machine can train, and how fast: measured, not looked up.

A layer of each shape is trained for a moment, forward and backward with its adapter, and so is the output
matrix; a step of the whole model is its layers' times plus that. bench/RESULTS.md says how far this is from
whole runs.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nightschool import memory
from nightschool.decoders import read_config, trainable_shapes
from nightschool.errors import UnsupportedModel
from nightschool.events import Event, Progress
from nightschool.gguf import GGUFFile, TensorType, open_gguf
from nightschool.hub import list_bases
from nightschool.lessons import Batch, Lesson, pack
from nightschool.lora import Lora, choose
from nightschool.model import Model
from nightschool.ops import Precision
from nightschool.precision import CANDIDATES, operations_per_s
from nightschool.settings import TrainSettings
from nightschool.shapes import SHAPES, write_random
from nightschool.train import accumulate, keep_freed_memory, resolve

EVENING_S = 4 * 3600
LESSON_TOKENS = 256
MEASURED_SHAPES = ("135M", "360M", "1B", "7B")


@dataclass(frozen=True)
class Fit:
    """One model on this machine; figures are None where it does not fit into the free memory."""

    name: str
    parameters: int
    precision: str
    memory_bytes: int
    fits: bool
    tokens_per_s: float

    @property
    def tokens_an_evening(self) -> int:
        """Lesson tokens trained in four hours."""
        return round(self.tokens_per_s * EVENING_S)


def measure(*, shapes: tuple[str, ...] = MEASURED_SHAPES, threads: int = 0) -> Iterator[Event | Fit]:
    """Measure every base on this machine and the well-known shapes; yields progress and Fits."""
    torch.set_num_threads(threads or torch.get_num_threads())
    keep_freed_memory()
    bases = list_bases()
    count = len(bases) + len(shapes)
    for done, base in enumerate(bases):
        yield Progress("measuring", done, count)
        try:
            file = open_gguf(base.path)
            yield fit_one(base.name, file, read_config(file).layers)
        except UnsupportedModel:
            continue
    with tempfile.TemporaryDirectory(prefix="nightschool-fit-") as folder:
        for done, name in enumerate(shapes, len(bases)):
            yield Progress("measuring", done, count)
            path = write_random(Path(folder) / "one.gguf", SHAPES[name], TensorType.Q8_0, layers=1)
            yield fit_one(f"{name} (as {SHAPES[name].like})", open_gguf(path), SHAPES[name].layers)
            path.unlink()
    yield Progress("measuring", count, count)


def fit_one(name: str, file: GGUFFile, layers: int) -> Fit:
    """Measure one model of so many layers with one of its own."""
    config = replace(read_config(file), layers=layers)
    lessons = _lessons(config.vocabulary)
    precision = max(CANDIDATES, key=lambda each: operations_per_s(each, config))
    settings = resolve(TrainSettings(precision=precision), config, lessons)
    one = trainable_shapes(file)
    per_layer = {key: shape for key, shape in one.items() if key.startswith("blk.0.")}
    all_layers = {f"{i}.{key}": shape for i in range(layers) for key, shape in per_layer.items()}
    need = memory.estimate(config, all_layers, settings, precision=precision).total
    seconds = _step_s(file, layers, precision, settings)
    tokens = sum(len(lesson.tokens) for lesson in lessons)
    weights = sum(out * width for out, width in all_layers.values()) + config.vocabulary * config.width
    return Fit(name, weights, precision, need, need <= memory.free_bytes(), tokens / seconds)


def _lessons(vocabulary: int) -> list[Lesson]:
    """Four lessons, half of each to be learned."""
    rng = np.random.default_rng(0)
    targets = np.arange(LESSON_TOKENS) >= LESSON_TOKENS // 2
    return [Lesson(rng.integers(0, vocabulary, LESSON_TOKENS).astype(np.int32), targets) for _ in range(4)]


def _step_s(file: GGUFFile, layers: int, precision: Precision, settings: TrainSettings) -> float:
    """Seconds of a step through all layers, from the time of one and of none."""
    model = Model(file, precision, layers=1)
    pieces = list(
        pack(_lessons(model.config.vocabulary), batch_tokens=settings.micro_tokens or 512, seed=0, epoch=0)
    )
    lora = Lora(choose(model.trainable(), settings.targets), rank=settings.rank or 16, alpha=1.0)
    one = _best_s(model, lora, pieces, settings)
    none = _head_s(model, pieces)
    return none + layers * max(one - none, 1e-6)


def _best_s(model: Model, lora: Lora, pieces: list[Batch], settings: TrainSettings) -> float:
    times = []
    for step in range(4):
        started = time.perf_counter()
        accumulate(model, lora, pieces, settings, step)
        times.append(time.perf_counter() - started)
    return min(times)


def _head_s(model: Model, pieces: list[Batch]) -> float:
    """The output matrix alone, forward and backward over the pieces' targets."""
    count = sum(int(piece.targets.sum()) for piece in pieces)
    hidden = torch.randn(count, model.config.width).requires_grad_()
    labels = torch.zeros(count, dtype=torch.long)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        model.loss(hidden, labels)[0].backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - started)
    return min(times)
