"""How a study divides the time that it has: the study itself goes by it, and so does its forecast.

Writing takes its share at most, then rehearsing and reading theirs of what is left, then training; the exam
has the rest.
"""

from nightschool.settings import StudySettings

WRITING_SHARE = 0.5  # of the time, at most
PREPARING_SHARE = 0.2  # of what is left then, for rehearsing, and again for distilling
TRAINING_SHARE = 0.8  # of what is left then, as planned
STOPPING_SHARE = 0.9  # and at most; the rest is for the exam
MIN_TRAINING_S = 10.0  # however late it is: an adapter that learned nothing is of no use
MIN_EPOCHS, MAX_EPOCHS = 0.1, 10.0
BATCH_TOKENS = 1024  # in a step: many small steps teach facts better than few large ones


def wanted_epochs(settings: StudySettings, tokens: float) -> float:
    """How often so many tokens of lessons are to be seen: as asked, and more often where they are few."""
    return max(settings.epochs, min(settings.steps * BATCH_TOKENS / tokens, MAX_EPOCHS))


def epochs_in(time_s: float, settings: StudySettings, tokens: float, *, tokens_per_s: float) -> float:
    """How often they can be seen, up to as often as wanted, if nothing but the exam is left to do."""
    affordable = max(time_s, MIN_TRAINING_S) * TRAINING_SHARE * tokens_per_s / tokens
    return max(MIN_EPOCHS, min(wanted_epochs(settings, tokens), affordable))
