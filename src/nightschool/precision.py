"""In which precision to hold the frozen weights: the fastest on this machine that trains the same.

Candidates are timed on the model's own widest matrix; then, fastest first, each is held against the exact one
(weights unpacked from the file at each use, float32) on the person's own lessons: the loss must agree within
LOSS_TOLERANCE and the gradients of all LoRA pairs must point the same way within GRADIENT_TOLERANCE. The
first that passes is taken.

The check runs over the first layers only where the whole model would take long; int8 weights get their
outlier channels (ops.Int8Matrix) from the same lessons.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nightschool import ops
from nightschool.decoders import Config, read_config
from nightschool.errors import NightschoolError
from nightschool.events import Event, Notice, Progress
from nightschool.gguf import GGUFFile
from nightschool.lessons import Batch, Lesson, pack
from nightschool.lora import Lora, choose
from nightschool.model import Model
from nightschool.ops import Int8Matrix, Precision
from nightschool.settings import TrainSettings
from nightschool.train import accumulate

LOSS_TOLERANCE = 0.02  # relative
GRADIENT_TOLERANCE = 0.95  # cosine of all LoRA gradients, taken as one vector
SAMPLE_TOKENS = 256
CHECKED_WEIGHTS = 500_000_000  # how many weights the exact pass unpacks at most
LOUD = 20.0  # a channel is an outlier when its peak is so many times the median channel's peak
MAX_OUTLIERS = 0.01  # share of the channels
CANDIDATES: tuple[Precision, ...] = ("int8", "bf16", "fp32")


@dataclass(frozen=True)
class Agreement:
    """How close to exact arithmetic: relative error of the loss, cosine of the gradients."""

    loss: float
    gradient: float

    @property
    def close(self) -> bool:
        return self.loss <= LOSS_TOLERANCE and self.gradient >= GRADIENT_TOLERANCE


def load_model(
    file: GGUFFile, lessons: Sequence[Lesson], settings: TrainSettings, *, ctx: int = 0
) -> Generator[Event, None, Model]:
    """Load a base in the precision that `settings` names, or in the fastest that agrees with the exact one.

    Yields what was tried and found; the generator's value is the model.
    """
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    piece = sample(lessons)
    if settings.precision != "auto":
        model = yield from _load(file, settings.precision, piece, device=settings.device, ctx=ctx)
        return model
    if settings.device != "cpu":
        model = yield from _load(file, "bf16", piece, device=settings.device, ctx=ctx)
        return model
    config = read_config(file)
    speeds = {precision: operations_per_s(precision, config) for precision in CANDIDATES}
    for precision in sorted(CANDIDATES, key=lambda name: -speeds[name]):
        model = yield from _load(file, precision, piece, ctx=ctx)
        found = compare(model, piece, settings)
        yield Notice(
            f"{precision}: {speeds[precision] / 1e9:,.0f} GOP/s here; against exact arithmetic on your "
            f"lessons the loss differs by {found.loss:.2%}, the gradients agree to {found.gradient:.4f}"
            + ("" if found.close else ": not close enough")
        )
        if found.close:
            return model
        del model
    raise NightschoolError(
        "No precision agrees with exact arithmetic on this model; "
        "force one with --precision fp32 and look at the exam."
    )


def _load(
    file: GGUFFile, precision: str, piece: Batch, *, device: str = "cpu", ctx: int = 0
) -> Generator[Event, None, Model]:
    yield Progress(f"loading {file.path.name} as {precision}", 0, 1)
    model = Model(file, precision, device=device, ctx=ctx)  # type: ignore[arg-type]
    if precision == "int8":
        find_outliers(model, piece)
    yield Progress(f"loading {file.path.name} as {precision}", 1, 1)
    return model


def sample(lessons: Sequence[Lesson]) -> Batch:
    """The first lessons, SAMPLE_TOKENS long together."""
    taken, left = [], SAMPLE_TOKENS
    for lesson in lessons:
        cut = Lesson(lesson.tokens[:left], lesson.targets[:left])
        if left > 1 and cut.targets.any():
            taken.append(cut)
            left -= len(cut.tokens)
    return next(iter(pack(taken or [lessons[0]], batch_tokens=1 << 30, seed=0, epoch=0)))


def operations_per_s(precision: Precision, config: Config) -> float:
    """Forward and backward through a matrix like the model's widest, 512 tokens."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(min(2 * config.ffn, 4096), config.width, generator=generator)
    x = torch.randn(512, config.width, generator=generator)
    matrix = ops.compute_copy(
        lambda a, b: weight[a:b].clone(), (weight.shape[0], weight.shape[1]), precision, "cpu"
    )
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        matrix.backward(matrix.forward(x))
        best = min(best, time.perf_counter() - started)
    return 4 * x.shape[0] * weight.numel() / best


def compare(model: Model, piece: Batch, settings: TrainSettings) -> Agreement:
    """Hold a model's loss and LoRA gradients on one piece against exact arithmetic on the same file."""
    exact = Model(model.file, "packed", ctx=model.ctx)
    per_layer = sum(out * width for out, width in model.trainable().values()) // max(1, len(model.layers))
    layers = max(1, min(len(model.layers), CHECKED_WEIGHTS // max(per_layer, 1)))
    found: list[tuple[float, Tensor]] = []
    for candidate in (exact.first(layers), model.first(layers)):
        lora = Lora(choose(candidate.trainable(), settings.targets), rank=8, alpha=16)
        with torch.no_grad():  # B away from zero, or the gradient of A would be
            lora.flat.add_(
                torch.randn(lora.flat.shape, generator=torch.Generator().manual_seed(1)), alpha=0.01
            )
        loss = accumulate(candidate, lora, [piece], settings, 0).loss
        found.append((loss, lora.grad))
    (loss, grad), (other, tilted) = found
    cosine = torch.cosine_similarity(grad, tilted, dim=0)
    return Agreement(abs(other - loss) / max(abs(loss), 1e-9), float(cosine))


def find_outliers(model: Model, piece: Batch) -> int:
    """Give each int8 matrix the channels that are far louder than the rest; returns how many."""
    matrices = [linear.matrix for layer in model.layers for linear in layer.linears]
    int8 = [matrix for matrix in matrices if isinstance(matrix, Int8Matrix)]
    for matrix in int8:
        matrix.peaks = torch.zeros(matrix.shape[1])
    with torch.no_grad():
        model.read(piece)
    count = 0
    for matrix in int8:
        assert matrix.peaks is not None
        peaks, matrix.peaks = matrix.peaks, None
        loud = (peaks > LOUD * peaks.median()).nonzero().flatten()
        loud = loud[peaks[loud].argsort(descending=True)][: max(1, int(MAX_OUTLIERS * len(peaks)))]
        if len(loud):
            matrix.set_outliers(loud.sort().values)
            count += len(loud)
    return count
