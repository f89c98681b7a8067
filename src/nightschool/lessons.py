"""Conversations → lessons: token ids with a mask of those to learn; and lessons → batches without padding.

The engine renders the base's own chat template and tokenises, so that training sees exactly what serving
sees. Targets are the assistant's turns up to and including the token that ends them (without it a model
never learns to stop), never the user's. Where a turn begins is found by comparing the tokens of the history,
rendered as the engine renders it before an answer, with those of the whole: their common prefix is what the
model is given. That holds for templates that trim, for tokenisers that merge over the border, and for SPM's
leading spaces. Where a template does not write an end-of-turn token that the base knows, the text ends with
the answer and the base's own end of text.

Some templates write earlier turns differently from the last one (Qwen3 leaves out old thoughts). Then no
single text holds what the model saw at every turn, and each turn becomes a lesson of its own.

Knows nothing of torch: a lesson is two numpy arrays.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nightschool.datasets import Conversation, Message
from nightschool.engine import Engine
from nightschool.errors import DataError, EngineError
from nightschool.events import Event, Notice, Progress
from nightschool.gguf import open_gguf
from nightschool.recipes import Recipe, alpaca_prompt
from nightschool.templates import Renderer

CONVERSATIONS_AT_ONCE = 256  # between two events, and in one request to the tokeniser
OPEN_BATCHES = 64  # batches that a lesson may still be fitted into
END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Tokens at which llama.cpp stops whatever the metadata says (src/llama-vocab.cpp, `special_eog_ids`).
END_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> <|end_of_text|> "
    "<|eom_id|> <EOT> _<EOT> [EOT] <｜end▁of▁sentence｜> <end_of_utterance>".split()
)


@dataclass(frozen=True, eq=False)
class Expected:
    """What a teacher expected at each of n targets: its likeliest tokens (n, k), their log-probabilities.

    Where a row of `logs` is all minus infinity the teacher has nothing to say.
    """

    tokens: npt.NDArray[np.int32]
    logs: npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Lesson:
    """tokens (T,) int32; targets (T,) bool: token i is one to learn to predict. The first never is."""

    tokens: npt.NDArray[np.int32]
    targets: npt.NDArray[np.bool_]
    expected: Expected | None = None


@dataclass(frozen=True)
class LessonSet:
    """Lessons, and how many conversations were cut to fit or left out because nothing in them is learned."""

    lessons: list[Lesson]
    truncated: int
    dropped: int

    @property
    def tokens(self) -> int:
        """All tokens the model will read in one epoch."""
        return sum(len(lesson.tokens) for lesson in self.lessons)

    @property
    def targets(self) -> int:
        """Those of them it learns to predict."""
        return sum(int(lesson.targets.sum()) for lesson in self.lessons)


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole lessons end to end: tokens, positions from 0 in each, which document, targets; all (T,).

    In a rehearsal the targets are not to be learned: there the model shall predict what its base predicts.
    `expected` has a row for each target.
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    document: npt.NDArray[np.int32]
    targets: npt.NDArray[np.bool_]
    rehearsal: bool = False
    expected: Expected | None = None


# Conversations → lessons


def make_lessons(
    conversations: Sequence[Conversation],
    engine: Engine,
    *,
    max_tokens: int,
    recipe: Recipe | None = None,
) -> Generator[Event, None, LessonSet]:
    """Render, tokenise and mark; `lessons = yield from make_lessons(…)`.

    A conversation longer than max_tokens keeps the turns that fit whole, or the beginning of the first.
    Raises DataError for a conversation that the base's template refuses.
    """
    vocabulary = read_vocabulary(engine)
    renderer = Renderer(engine)
    if recipe is None or not recipe.alpaca_prompt:
        renderer.check([each.messages for each in conversations if not each.is_document])
    lessons: list[Lesson] = []
    truncated = dropped = 0
    for start in range(0, len(conversations), CONVERSATIONS_AT_ONCE):
        some = conversations[start : start + CONVERSATIONS_AT_ONCE]
        drafts = [
            drafts_of(conversation, start + index, renderer, vocabulary=vocabulary, recipe=recipe)
            for index, conversation in enumerate(some, 1)
        ]
        tokens = tokenize_all(engine, (text for group in drafts for draft in group for text in draft.texts))
        for group in drafts:
            made = [lesson_of(draft, tokens, vocabulary, max_tokens=max_tokens) for draft in group]
            kept = [lesson for pieces, _ in made for lesson in pieces if lesson.targets.any()]
            lessons += kept
            dropped += not kept
            truncated += bool(kept) and any(cut for _, cut in made)
        yield Progress("preparing lessons", start + len(some), len(conversations))
    total = f"{len(conversations):,} examples"
    if truncated:
        yield Notice(f"{truncated:,} of {total} are longer than {max_tokens:,} tokens and were cut.")
    if dropped:
        yield Notice(f"{dropped:,} of {total} have nothing to learn in them and were left out.")
    return LessonSet(lessons, truncated, dropped)


@dataclass(frozen=True)
class Vocabulary:
    """What every text begins with (BOS or nothing), which tokens end a turn, and the one to end it with."""

    head: tuple[int, ...]
    ends: frozenset[int]
    end_texts: tuple[str, ...]
    eos: tuple[int, ...]


def read_vocabulary(engine: Engine) -> Vocabulary:
    """Ask the engine for the head, and the base's metadata for the ends."""
    bare, full = engine.tokenize("a", add_special=False), engine.tokenize("a", add_special=True)
    head = tuple(full[: full.index(bare[0])]) if bare and bare[0] in full else ()
    metadata = open_gguf(engine.base).metadata
    texts: list[str] = metadata.get("tokenizer.ggml.tokens", [])
    known = [metadata.get(f"tokenizer.ggml.{key}") for key in END_IDS]
    ends = {number for number in known if isinstance(number, int) and number < len(texts)}
    ends |= {number for number, text in enumerate(texts) if text in END_TEXTS}
    eos = known[1] if known[0] not in ends else known[0]
    return Vocabulary(
        head=head,
        ends=frozenset(ends),
        end_texts=tuple(texts[number] for number in sorted(ends)),
        eos=() if eos is None else (eos,),
    )


@dataclass(frozen=True)
class Turn:
    """One answer to learn: the text the model is given, and the text up to the end of the turn.

    `closed` says whether that text ends with an end-of-turn token of the base.
    """

    given: str
    whole: str
    closed: bool


@dataclass(frozen=True)
class Draft:
    """A lesson before tokenising; without turns every token of the text is learned."""

    text: str
    turns: tuple[Turn, ...] = ()

    @property
    def texts(self) -> Iterator[str]:
        """All texts whose tokens `lesson_of` needs."""
        yield self.text
        for turn in self.turns:
            yield from (turn.given, turn.whole)


def drafts_of(
    conversation: Conversation,
    number: int,
    renderer: Renderer,
    *,
    vocabulary: Vocabulary,
    recipe: Recipe | None,
) -> list[Draft]:
    """The texts of a conversation: one draft, or one for each turn, or none if no turn is learned."""
    if conversation.is_document:
        return [Draft(conversation.messages[0].content)]
    if not any(learned(message) for message in conversation.messages):
        return []
    if recipe is not None and recipe.alpaca_prompt:
        return [alpaca_draft(conversation, number)]
    try:
        return chat_drafts(render_turns(conversation.messages, renderer, vocabulary))
    except EngineError as error:
        reason = str(error).split("Jinja Exception:")[-1].strip()
        raise DataError(f"Example {number:,} does not fit the base's chat template: {reason}") from error


def learned(message: Message) -> bool:
    return message.role == "assistant" and message.weight > 0


def alpaca_draft(conversation: Conversation, number: int) -> Draft:
    """The published Alpaca form: prompt, response, end of text."""
    messages = conversation.messages
    if conversation.instruction is None and [m.role for m in messages] != ["user", "assistant"]:
        raise DataError(
            f"Example {number:,} is more than one question and its answer, for which the alpaca recipe has "
            "no form. Train without --recipe, or with --recipe vicuna."
        )
    given = alpaca_prompt(*(conversation.instruction or (messages[-2].content, "")))
    whole = given + messages[-1].content.rstrip()
    return Draft(whole, (Turn(given, whole, closed=False),))


def render_turns(messages: Sequence[Message], renderer: Renderer, vocabulary: Vocabulary) -> list[Turn]:
    """Each learned turn as the engine would be asked for it, and with its answer."""
    turns = []
    for index, message in enumerate(messages):
        if learned(message):
            given = renderer.render(messages[:index], add_generation_prompt=True)
            whole = renderer.render(messages[: index + 1], add_generation_prompt=False).rstrip()
            closed = whole.endswith(vocabulary.end_texts)
            turns.append(Turn(given, whole if closed else up_to(message.content, whole), closed))
    return turns


def up_to(answer: str, text: str) -> str:
    """The text as far as the last place where the answer stands in it."""
    answer = answer.strip()
    found = text.rfind(answer)
    return text if found < 0 else text[: found + len(answer)]


def chat_drafts(turns: list[Turn]) -> list[Draft]:
    """All turns in one text if it contains each as it was; otherwise a text for each."""
    text = turns[-1].whole
    together = all(
        turn.closed and text.startswith(turn.whole) and text.startswith(turn.given) for turn in turns[:-1]
    )
    if together:
        return [Draft(text, tuple(turns))]
    return [Draft(turn.whole, (turn,)) for turn in turns]


def tokenize_all(engine: Engine, texts: Iterable[str]) -> dict[str, list[int]]:
    """Tokens of each different text, without BOS."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, engine.tokenize_many(different), strict=True))


def lesson_of(
    draft: Draft, tokens_of: dict[str, list[int]], vocabulary: Vocabulary, *, max_tokens: int
) -> tuple[list[Lesson], bool]:
    """The lesson of a draft (of a long document, the lessons), and whether it had to be cut."""
    body = tokens_of[draft.text]
    head = [] if body[: len(vocabulary.head)] == list(vocabulary.head) else list(vocabulary.head)
    if not draft.turns:
        return document_lessons(body, head, max_tokens=max_tokens), False
    tokens = head + body + ([] if draft.turns[-1].closed else list(vocabulary.eos))
    targets = np.zeros(len(tokens), dtype=np.bool_)
    turn_ends = []
    for turn in draft.turns:
        start = len(head) + common_prefix(tokens_of[turn.given], body)
        end = len(head) + common_prefix(tokens_of[turn.whole], body)
        if turn.whole == draft.text:
            end = len(tokens)
        end = after_last_end(tokens, start, end, ends=vocabulary.ends)
        targets[start:end] = True
        turn_ends.append(end)
    targets[:1] = False
    size = len(tokens)
    if size > max_tokens:
        size = max((end for end in turn_ends if end <= max_tokens), default=max_tokens)
    lesson = Lesson(np.array(tokens[:size], dtype=np.int32), targets[:size])
    return [lesson], size < len(tokens)


def document_lessons(body: list[int], head: list[int], *, max_tokens: int) -> list[Lesson]:
    """Every token of a document, in lessons of max_tokens at most."""
    size = max(max_tokens - len(head), 1)
    lessons = []
    for start in range(0, len(body), size):
        tokens = np.array(head + body[start : start + size], dtype=np.int32)
        targets = np.ones(len(tokens), dtype=np.bool_)
        targets[0] = False
        lessons.append(Lesson(tokens, targets))
    return lessons


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the start."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:size]) != np.asarray(b[:size]))
    return int(differ[0]) if differ.size else size


def after_last_end(tokens: Sequence[int], start: int, end: int, *, ends: frozenset[int]) -> int:
    """Where an answer stops: after its last end-of-turn token; templates write line ends behind it."""
    for index in range(end - 1, start - 1, -1):
        if tokens[index] in ends:
            return index + 1
    return end


# Lessons → batches


def rehearsed(lengths: Sequence[int], step: int, *, tokens: int, seed: int) -> list[int]:
    """Which rehearsal lessons a step takes: about `tokens`, going round the whole set before repeating.

    Depends on nothing but its arguments, so that a resumed run rehearses what an uninterrupted one does.
    """
    order = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths))
    ends = np.cumsum([lengths[index] for index in order])
    starts, total = np.concatenate([[0], ends[:-1]]), int(ends[-1])
    ahead = (starts - step * tokens) % total  # how far before each lesson begins
    chosen = np.flatnonzero(ahead < tokens)
    if not chosen.size:  # in the middle of one that is longer than a step's share
        chosen = np.array([np.argmax(ahead)])
    return [int(order[place]) for place in chosen[np.argsort(ahead[chosen])]]


def plan(lengths: Sequence[int], *, batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Which lessons go into which batch of an epoch: shuffled, then each into the first batch with room.

    The same arguments give the same plan; its length is the number of steps. A lesson longer than
    batch_tokens has a batch to itself. At most OPEN_BATCHES are kept open, so that the order stays random.
    """
    room = np.full(OPEN_BATCHES, -1)
    filling: list[list[int]] = [[] for _ in range(OPEN_BATCHES)]
    full: list[list[int]] = []
    for index in np.random.default_rng([seed, epoch]).permutation(len(lengths)):
        length = lengths[index]
        fitting = np.flatnonzero(room >= length)
        if fitting.size:
            slot = int(fitting[0])
        else:
            slot = int(np.argmin(room))
            full.append(filling[slot])
            filling[slot], room[slot] = [], batch_tokens
        filling[slot].append(int(index))
        room[slot] -= length
    return [batch for batch in full + filling if batch]


def collate(lessons: Sequence[Lesson], indices: Sequence[int], *, rehearsal: bool = False) -> Batch:
    """The lessons of one batch end to end."""
    chosen = [lessons[index] for index in indices]
    lengths = [len(lesson.tokens) for lesson in chosen]
    return Batch(
        tokens=np.concatenate([lesson.tokens for lesson in chosen]),
        positions=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        document=np.repeat(np.arange(len(chosen), dtype=np.int32), lengths),
        targets=np.concatenate([lesson.targets for lesson in chosen]),
        rehearsal=rehearsal,
        expected=joined(chosen),
    )


def joined(lessons: Sequence[Lesson]) -> Expected | None:
    """What the teacher expected at all targets of these lessons, end to end; None where it said nothing."""
    known = next((lesson.expected for lesson in lessons if lesson.expected), None)
    if known is None:
        return None
    tokens, logs = [], []
    for lesson in lessons:
        shape = (int(lesson.targets.sum()), known.tokens.shape[1])
        tokens.append(lesson.expected.tokens if lesson.expected else np.zeros(shape, np.int32))
        logs.append(lesson.expected.logs if lesson.expected else np.full(shape, -np.inf, np.float16))
    return Expected(np.concatenate(tokens), np.concatenate(logs))


def pack(lessons: Sequence[Lesson], *, batch_tokens: int, seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch, each made when it is asked for."""
    lengths = [len(lesson.tokens) for lesson in lessons]
    for indices in plan(lengths, batch_tokens=batch_tokens, seed=seed, epoch=epoch):
        yield collate(lessons, indices)
