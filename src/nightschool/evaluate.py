"""What an adapter changed: exams before and after, and how well general text is still predicted.

Forgetting is the relative rise of perplexity on text that has nothing to do with the lessons.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nightschool.adapters import Stack, check_fits, load_weights, stack_paths
from nightschool.datasets import load_dataset
from nightschool.engine import Engine
from nightschool.events import Event, Progress
from nightschool.exam import Answer, Question, examine, recall
from nightschool.gguf import open_gguf
from nightschool.hub import find_base
from nightschool.lessons import Lesson, make_lessons
from nightschool.lora import stacked
from nightschool.model import Model, Pairs
from nightschool.settings import TrainSettings
from nightschool.train import evaluate

EXAM_CTX = 1024  # a question and its answer
GENERAL_TOKENS = 256
PROBE_TOKENS = 2048  # read at once: each time all weights are unpacked


def perplexity(model: Model, pairs: Pairs, lessons: Sequence[Lesson]) -> float:
    """exp of the mean loss over the targets of some lessons, with LoRA pairs or without ({})."""
    found = evaluate(model, pairs, lessons, TrainSettings(micro_tokens=PROBE_TOKENS))
    return math.exp(found.loss / max(1, found.targets))


def general_lessons(text: Path, engine: Engine) -> Generator[Event, None, list[Lesson]]:
    """A text as lessons whose every token counts."""
    made = yield from make_lessons(load_dataset(text, format="text"), engine, max_tokens=GENERAL_TOKENS)
    return made.lessons


@dataclass(frozen=True)
class Result:
    """What an exam found; the `before` figures are the bare base's, None where they were not asked for."""

    answers: list[Answer]
    recall: float
    answers_before: list[Answer] | None = None
    recall_before: float | None = None
    perplexity: float | None = None
    perplexity_before: float | None = None

    @property
    def forgetting(self) -> float | None:
        """Relative rise of perplexity on general text."""
        if self.perplexity is None or self.perplexity_before is None:
            return None
        return self.perplexity / self.perplexity_before - 1


def sit_exam(
    stack: Stack,
    questions: Sequence[Question],
    *,
    before: bool = False,
    general: Path | None = None,
    slots: int = 4,
) -> Generator[Event, None, Result]:
    """Examine a base with its adapters through the engine; the generator's value is the Result.

    Args:
        before: ask the bare base as well.
        general: a text for the forgetting probe.
    Raises:
        NotFound, AdapterMismatch: a part of the stack is not there or does not fit.
    """
    base = find_base(stack.base)
    paths = stack_paths(stack)
    file = open_gguf(base.path)
    for path in paths.values():
        check_fits(path, file)
    lessons: list[Lesson] = []
    with Engine(base.path, adapters=paths, slots=slots, ctx=EXAM_CTX) as engine:
        answers = yield from examine(engine, questions, stack=stack.scales)
        bare = (yield from examine(engine, questions, task="examining the base")) if before else None
        if general:
            lessons = yield from general_lessons(general, engine)
    after_general = before_general = None
    if lessons:
        model = Model(file, "packed")  # exact, and no copy of the weights
        loaded = [(load_weights(paths[name]), scale) for name, scale in stack.adapters]
        pairs = stacked([(each.weights, each.alpha, scale) for each, scale in loaded])
        after_general = perplexity(model, pairs, lessons)
        before_general = perplexity(model, {}, lessons)
        yield Progress("reading general text", 1, 1)
    return Result(
        answers, recall(answers), bare, None if bare is None else recall(bare), after_general, before_general
    )
