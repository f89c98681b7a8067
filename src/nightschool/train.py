"""The training loop: lessons in, adapter out, one event a step.

AdamW (arXiv:1711.05101) on the flat vector of a Lora. A step sees `batch_tokens` tokens, computed
`micro_tokens` at a time; its loss is the mean over the target tokens of the whole step, however they fell
into pieces. Everything random is drawn from (seed, epoch) or (seed, step), never from what ran before, so a
run killed anywhere and resumed from its last checkpoint ends in the same bytes. This file knows nothing of
files but the checkpoint, and prints nothing.
"""

import ctypes
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nightschool.decoders import Config
from nightschool.errors import FileFormatError, NightschoolError, NotFound
from nightschool.events import Event, Notice, TrainStep, Validation
from nightschool.lessons import Batch, Lesson, collate, pack, plan, rehearsed
from nightschool.lora import Lora
from nightschool.model import Model, Pairs
from nightschool.paths import atomic_write
from nightschool.settings import TrainSettings

BETAS, EPS = (0.9, 0.999), 1e-8
SPEED_WINDOW = 20  # steps that the shown tokens/s is averaged over
MIN_STEPS, MAX_EPOCHS = 60, 40


def resolve(settings: TrainSettings, config: Config, lessons: Sequence[Lesson]) -> TrainSettings:
    """Fill in what the person left open, from the model and the lessons.

    The learning rate follows "LoRA Without Regret" (Schulman and Thinking Machines Lab, 2025): ten times that
    of full fine-tuning, falling with the model's width; epochs are 3, or as many as give 60 steps, at most
    40.
    """
    total = sum(len(lesson.tokens) for lesson in lessons) / (1 - settings.rehearsal)
    longest = max(len(lesson.tokens) for lesson in lessons)
    rank = settings.rank or 16
    batch_tokens = settings.batch_tokens or (1024 if total < 200_000 else 4096)
    micro_tokens = settings.micro_tokens or max(longest, 1024 if config.width < 1024 else 512)
    steps_per_epoch = max(1, round(total / batch_tokens))
    epochs = settings.epochs or min(MAX_EPOCHS, max(3, math.ceil(MIN_STEPS / steps_per_epoch)))
    return replace(
        settings,
        rank=rank,
        alpha=settings.alpha or 2.0 * rank,
        lr=settings.lr or 5e-4 * (2000 / config.width) ** 0.775,
        epochs=epochs,
        batch_tokens=max(batch_tokens, longest),
        micro_tokens=max(min(micro_tokens, max(batch_tokens, longest)), longest),
        max_tokens=settings.max_tokens or longest,
        threads=settings.threads or torch.get_num_threads(),
    )


@dataclass(frozen=True)
class Measure:
    """What a forward pass over some lessons found: sums, not means."""

    loss: float
    correct: float
    targets: int


@dataclass(frozen=True)
class Deadline:
    """When training must end, on the monotonic clock: from `slow_s` on the learning rate falls to zero.

    A run that ends before `slow_s` is the same as one without a deadline.
    """

    slow_s: float
    stop_s: float

    @property
    def share(self) -> float:
        """What is left of the learning rate."""
        left = (self.stop_s - time.monotonic()) / max(self.stop_s - self.slow_s, 1e-9)
        return min(1.0, max(0.0, left))


class Steps:
    """The order of a run: which pieces each optimiser step computes; the same for the same settings.

    A step is lessons and, beside them, `settings.rehearsal` of its tokens rehearsal.
    """

    def __init__(
        self, lessons: Sequence[Lesson], settings: TrainSettings, rehearsal: Sequence[Lesson] = ()
    ) -> None:
        assert settings.micro_tokens and settings.batch_tokens and settings.epochs
        self.lessons, self.rehearsal, self.settings = lessons, rehearsal, settings
        self.lengths = [len(lesson.tokens) for lesson in lessons]
        self.rehearsal_tokens = round(settings.rehearsal * settings.batch_tokens) if rehearsal else 0
        lesson_tokens = max(settings.batch_tokens - self.rehearsal_tokens, max(self.lengths))
        self.piece_tokens = min(settings.micro_tokens, lesson_tokens)
        self.accumulate = max(1, round(lesson_tokens / self.piece_tokens))
        self.starts = [0]  # first step of each epoch
        for epoch in range(math.ceil(settings.epochs)):
            self.starts.append(self.starts[-1] + math.ceil(len(self._plan(epoch)) / self.accumulate))
        whole = self.starts[-1] - self.starts[-2]
        part = settings.epochs - (len(self.starts) - 2)
        self.total = self.starts[-2] + max(1, round(whole * part))
        if settings.max_steps:
            self.total = min(self.total, settings.max_steps)
        self.measured = {self.total, *self._measured()}  # after how many steps held-out lessons are

    def _measured(self) -> Iterator[int]:
        every = max(self.settings.measure_epochs, 1e-3)
        for number in range(1, math.ceil(self.settings.epochs or 1) * math.ceil(1 / every) + 1):
            epoch, part = divmod(number * every, 1)
            if epoch + 1 < len(self.starts):
                start, stop = self.starts[int(epoch)], self.starts[int(epoch) + 1]
                yield max(1, start + round((stop - start) * part))

    def ends_epoch(self, done: int) -> int:
        """The number of the epoch that has ended after so many steps; 0 in the midst of one."""
        if done == self.total:
            return len(self.starts) - 1
        return self.starts.index(done) if done in self.starts else 0

    def _plan(self, epoch: int) -> list[list[int]]:
        """Which lessons each piece of an epoch holds."""
        return plan(self.lengths, batch_tokens=self.piece_tokens, seed=self.settings.seed, epoch=epoch)

    def __call__(self, first: int) -> Iterator[tuple[int, list[Batch]]]:
        """(step, its pieces) from step `first` on, counted from 0."""
        for epoch in range(len(self.starts) - 1):
            start, stop = self.starts[epoch], min(self.starts[epoch + 1], self.total)
            if stop <= first:
                continue
            order = self._plan(epoch)
            for step in range(max(first, start), stop):
                at = (step - start) * self.accumulate
                pieces = [collate(self.lessons, piece) for piece in order[at : at + self.accumulate]]
                yield step, pieces + self._rehearsal(step)

    def _rehearsal(self, step: int) -> list[Batch]:
        if not self.rehearsal_tokens:
            return []
        lengths = [len(lesson.tokens) for lesson in self.rehearsal]
        chosen = rehearsed(lengths, step, tokens=self.rehearsal_tokens, seed=self.settings.seed)
        return [collate(self.rehearsal, chosen, rehearsal=True)]


def train(
    model: Model,
    lora: Lora,
    lessons: Sequence[Lesson],
    settings: TrainSettings,
    *,
    valid: Sequence[Lesson] = (),
    rehearsal: Sequence[Lesson] = (),
    checkpoint: Path | None = None,
    distil: float = 0.0,
    deadline: Deadline | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Train `lora` in place.

    Args:
        settings: resolved ones.
        valid: held-out lessons, measured every `measure_epochs` and at the end.
        rehearsal: lessons on which the model shall go on predicting what its base predicts.
        distil: what the divergence from the teacher's expectations counts, where lessons carry them.
        deadline: when to end whatever is left.
        now: a clock for speeds, which may stand still while the work is held up.
        checkpoint: a file to save to now and then, and to go on from where it exists. Closing the generator
            between two events saves as well.
    Raises:
        FileFormatError: the checkpoint is damaged or of another run.
        NightschoolError: the loss is no longer a number.
    """
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    keep_freed_memory()
    optimiser = AdamW(lora, settings)
    if checkpoint and checkpoint.exists():
        optimiser.load(checkpoint)
    steps = Steps(lessons, settings, rehearsal)
    clock = Clock(steps.total, now)
    watch, reason = optimiser.watch, ""
    saved_at, saved_step = time.monotonic(), optimiser.step

    def held_out() -> Iterator[Event]:
        if valid and watch.step < optimiser.step in steps.measured:
            found = evaluate(model, lora.pairs, valid, settings)
            count = max(found.targets, 1)
            watch.note(optimiser.step, found.loss / count, lora.flat)
            yield Validation(optimiser.step, found.loss / count, found.correct / count)

    try:
        yield from held_out()  # a kill may have come between a step and its measurement
        for step, pieces in steps(optimiser.step):
            share = deadline.share if deadline else 1.0
            if watch.is_over or not share:
                reason = "the time is up" if not share else "held-out lessons got no better"
                break
            measure = accumulate(model, lora, pieces, settings, step, distil=distil)
            if not math.isfinite(measure.loss):
                raise NightschoolError(
                    f"The loss stopped being a number at step {step + 1}; start again with a smaller --lr "
                    f"(it was {settings.lr:.2g})."
                )
            lr = learning_rate(step, steps.total, settings) * share
            optimiser.update(lr)
            tokens = sum(len(piece.tokens) for piece in pieces)
            yield replace(clock.event(step, tokens, measure, lr), ends_epoch=steps.ends_epoch(step + 1))
            yield from held_out()
            if checkpoint and time.monotonic() - saved_at > settings.checkpoint_s:
                optimiser.save(checkpoint)
                saved_at, saved_step = time.monotonic(), optimiser.step
    finally:
        if checkpoint and optimiser.step > saved_step:
            optimiser.save(checkpoint)
    if reason:
        yield Notice(f"Training ended at step {optimiser.step} of {steps.total}: {reason}.")
    if watch.best is not None:
        lora.flat.copy_(watch.best)
        if watch.best_step < optimiser.step:
            yield Notice(f"Kept is what held-out lessons were best with, after step {watch.best_step}.")


def accumulate(
    model: Model,
    lora: Lora,
    pieces: Sequence[Batch],
    settings: TrainSettings,
    step: int,
    *,
    distil: float = 0.0,
) -> Measure:
    """Forward and backward over the pieces of one step; gradients of the mean loss land in lora.grad."""
    lora.grad.zero_()
    torch.manual_seed((settings.seed << 32) + step)  # dropout
    places = sum(int(_predicted(piece).sum()) for piece in pieces)
    loss = correct = 0.0
    targets = 0
    for piece in pieces:
        if piece.rehearsal:
            part = _drift(model, lora.pairs, piece, settings)
        else:
            part, plain, right = _lesson_loss(model, lora.pairs, piece, settings, distil=distil)
            loss, correct = loss + float(plain.detach()), correct + float(right)
            targets += int(_predicted(piece).sum())
        (part / max(places, 1)).backward()  # type: ignore[no-untyped-call]
    return Measure(loss / max(targets, 1), correct / max(targets, 1), targets)


def _drift(model: Model, pairs: Pairs, piece: Batch, settings: TrainSettings) -> Tensor:
    """How far the predictions have moved from the base's, summed over a rehearsal piece's targets.

    The base teaches its own adapter here: the whole distribution is kept, so that a rehearsal text is not
    learned by heart however often it comes (learning without forgetting, arXiv:1606.09282).
    """
    places = _predicted(piece).nonzero().flatten().to(model.device)
    with torch.no_grad():
        reference = model.read(piece)[places]
    hidden = model.read(piece, pairs, dropout=settings.dropout, recompute=settings.recompute)
    return model.divergence(hidden[places], reference)


def _predicted(piece: Batch) -> Tensor:
    """Places in a stream whose next token is a target of the same document: (T - 1,) bool."""
    targets, document = torch.from_numpy(piece.targets), torch.from_numpy(piece.document)
    return targets[1:] & (document[1:] == document[:-1])


def _lesson_loss(
    model: Model, pairs: Pairs, piece: Batch, settings: TrainSettings, *, distil: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What to train on over a piece's targets, the plain loss in it, how many were predicted first: sums."""
    hidden = model.read(piece, pairs, dropout=settings.dropout, recompute=settings.recompute)
    places, labels = _labels(piece, model)
    if piece.expected is None or not distil:
        loss, right = model.loss(hidden[places], labels)
        return loss, loss, right
    tokens = torch.from_numpy(piece.expected.tokens).long().to(model.device)
    logs = torch.from_numpy(piece.expected.logs).to(model.device)
    return model.distil(hidden[places], labels, (tokens, logs), weight=distil)


def _labels(piece: Batch, model: Model) -> tuple[Tensor, Tensor]:
    """Places whose next token is learned, and that token."""
    places = _predicted(piece).nonzero().flatten().to(model.device)
    return places, torch.from_numpy(piece.tokens).long().to(model.device)[places + 1]


def evaluate(model: Model, pairs: Pairs, lessons: Sequence[Lesson], settings: TrainSettings) -> Measure:
    """Loss, right predictions and number of targets, summed over all lessons; nothing is trained."""
    loss = correct = 0.0
    targets = 0
    with torch.no_grad():
        for piece in pack(lessons, batch_tokens=settings.micro_tokens or 512, seed=0, epoch=0):
            places, labels = _labels(piece, model)
            part, right = model.loss(model.read(piece, pairs)[places], labels)
            loss, correct = loss + float(part), correct + float(right)
            targets += int(_predicted(piece).sum())
    return Measure(loss, correct, targets)


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """Linear warm-up from zero, then the schedule down to zero (or constant); step counts from 0."""
    assert settings.lr
    warm = math.ceil(settings.warmup * total)
    if step < warm:
        return settings.lr * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return settings.lr * shape[settings.schedule]


class Watch:
    """Held-out loss over time; with patience, the adapter as it was when that was lowest."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.step, self.worse = 0, 0  # the last step measured; measurements since the best
        self.best_step, self.best_loss = 0, math.inf
        self.best: Tensor | None = None

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return 0 < self.patience <= self.worse

    def note(self, step: int, loss: float, flat: Tensor) -> None:
        """Take in a measurement."""
        self.step = step
        if not self.patience:
            return
        if loss < self.best_loss:
            self.best_step, self.best_loss, self.worse = step, loss, 0
            self.best = flat.detach().clone()
        else:
            self.worse += 1

    def metadata(self) -> dict[str, str]:
        """All but the tensor, for a checkpoint."""
        return {
            "measured": str(self.step),
            "worse": str(self.worse),
            "best_step": str(self.best_step),
            "best_loss": self.best_loss.hex(),
        }

    def load(self, metadata: Mapping[str, str], best: Tensor | None) -> None:
        """Back from a checkpoint."""
        self.step, self.worse = int(metadata["measured"]), int(metadata["worse"])
        self.best_step, self.best_loss = int(metadata["best_step"]), float.fromhex(metadata["best_loss"])
        self.best = best


class AdamW:
    """AdamW over a Lora's flat vector, with its two moments, and checkpoints of it all."""

    def __init__(self, lora: Lora, settings: TrainSettings) -> None:
        self.lora, self.settings = lora, settings
        self.watch = Watch(settings.patience)
        self.mean, self.square = torch.zeros_like(lora.flat), torch.zeros_like(lora.flat)
        self.step = 0

    def update(self, lr: float) -> None:
        """One step against the gradient in lora.grad."""
        grad, flat = self.lora.grad, self.lora.flat
        if self.settings.clip:
            grad.mul_((self.settings.clip / (grad.norm() + 1e-6)).clamp(max=1.0))
        self.step += 1
        self.mean.lerp_(grad, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        denominator = (self.square / (1 - BETAS[1] ** self.step)).sqrt_().add_(EPS)
        flat.mul_(1 - lr * self.settings.weight_decay)
        flat.addcdiv_(self.mean, denominator, value=-lr / (1 - BETAS[0] ** self.step))

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {"flat": self.lora.flat, "mean": self.mean, "square": self.square}
        if self.watch.best is not None:
            tensors["best"] = self.watch.best
        metadata = {"step": str(self.step)} | self.watch.metadata()
        with atomic_write(path) as draft:
            save_file({k: v.cpu() for k, v in tensors.items()}, draft, metadata=metadata)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self.step = int(metadata["step"])
                best = file.get_tensor("best") if "best" in file.keys() else None
                self.watch.load(metadata, None if best is None else best.to(self.lora.flat.device))
                for name, tensor in (("flat", self.lora.flat), ("mean", self.mean), ("square", self.square)):
                    tensor.copy_(file.get_tensor(name))
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise FileFormatError(
                f"The checkpoint {path} cannot be used ({error}); begin the run again with --restart."
            ) from error


class Clock:
    """Speed and time left, averaged over the last steps."""

    def __init__(self, total: int, now: Callable[[], float]) -> None:
        self.total, self.now = total, now
        self.window: deque[tuple[float, int]] = deque([(now(), 0)], maxlen=SPEED_WINDOW + 1)

    def event(self, step: int, tokens: int, measure: Measure, lr: float) -> TrainStep:
        """The event of a step that has just ended."""
        self.window.append((self.now(), tokens))
        seconds = max(self.window[-1][0] - self.window[0][0], 1e-9)
        steps = len(self.window) - 1
        speed = sum(count for _, count in list(self.window)[1:]) / seconds
        eta_s = (self.total - step - 1) * seconds / steps
        return TrainStep(step + 1, self.total, measure.loss, speed, eta_s, measure.correct, lr, tokens)


def check_device(settings: TrainSettings) -> None:
    """Raise, in a sentence, where torch has no such device here, or the device cannot hold such weights."""
    device = settings.device
    if device != "cpu" and settings.precision == "int8":
        raise NightschoolError(f"Int8 products are for the CPU; on {device} take --precision bf16, or auto.")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        raise NotFound(f"This machine has no {device} device that torch can use; leave --device away.")


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory: page faults on fresh large blocks cost more than the arithmetic."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8  # <malloc.h>
    mallopt(m_arena_max, 1)  # the backward pass has a thread of its own, whose arena would be given back
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 << 20)
