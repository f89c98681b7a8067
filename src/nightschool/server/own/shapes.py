"""The JSON of our own API: what the page sends and gets. Every field here stands in /openapi.json.

Times are seconds since 1970, sizes bytes, shares between 0 and 1. Nothing says where a file lies on the disk.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

STATE = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
FORMAT = Literal["gguf", "peft", "modelfile", "merged"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Asked(BaseModel):
    """A request: fields that are not named are refused."""

    model_config = ConfigDict(extra="forbid")


# The machine --------------------------------------------------------------------------------------


class Machine(BaseModel):
    """What there is to train with."""

    memory_bytes: int
    free_memory_bytes: int
    cores: int


class JobProgress(BaseModel):
    """`done` of `total` units of a task; total is null while it is not known."""

    task: str
    done: int
    total: int | None


class JobResult(BaseModel):
    """What came of a job; `reasons` say why its adapter is not in use."""

    adapter: str | None = None
    model: str | None = Field(None, description="The name to chat with: a stack, or ft:…")
    promoted: bool | None = None
    reasons: list[str] = []
    recall_before: float | None = None
    recall_after: float | None = None
    forgetting: float | None = None


class Job(BaseModel):
    """A queued piece of long work."""

    id: str
    kind: str = Field(description="study, rebuild or fine_tuning")
    name: str = Field(description="What its adapter will be called")
    model: str = Field(description="The base it learns on")
    state: STATE
    stage: str = Field(description="A word for what it is doing, such as write, train, examine")
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    progress: JobProgress | None = None
    loss: list[tuple[int, float, float | None]] = Field(
        default=[], description="[step, loss, validation loss or null], at most 300 of them"
    )
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    held: bool = Field(False, description="Waiting for a chat to end")
    error: str | None = None
    result: JobResult | None = None


class JobEvent(BaseModel):
    """One line of a job's log; `number` counts from 1 within the job."""

    number: int
    at: int
    level: Literal["info", "warn", "error"]
    message: str
    data: dict[str, Any] | None = None


class JobEvents(BaseModel):
    """Events in order; ask again with after=last."""

    events: list[JobEvent]
    last: int


class Jobs(BaseModel):
    """All jobs, newest first."""

    jobs: list[Job]


class Status(BaseModel):
    """What the program is doing."""

    version: str
    default_model: str
    machine: Machine
    job: Job | None = Field(description="The job that runs, or the next in the queue")
    chatting: bool
    sources: int
    adapters: int


class Base(BaseModel):
    """A frozen model."""

    name: str
    bytes: int
    parameters: int
    context: int
    architecture: str
    quantisation: str
    is_default: bool
    is_embedder: bool
    can_train: bool
    memory_needed_bytes: int | None = Field(description="To train it; null where it cannot be trained")
    problem: str | None = Field(None, description="Why it cannot be used or trained")


class Bases(BaseModel):
    """The bases on this machine."""

    bases: list[Base]


# Sources ------------------------------------------------------------------------------------------


class Source(BaseModel):
    """A file or a note that is remembered."""

    id: int
    label: str
    title: str
    kind: Literal["file", "note", "upload"]
    chunks: int
    bytes: int
    remembered_at: int
    studied_by: list[str]
    stale: str = Field(description="Why what is known may be out of date; empty when it is not")


class Sources(BaseModel):
    """Everything that is remembered."""

    sources: list[Source]


class Note(Asked):
    """Text to remember."""

    text: Annotated[str, Field(min_length=1, max_length=2_000_000)]
    name: Annotated[str, Field(max_length=120)] | None = None


class Failed(BaseModel):
    """A file that was left out."""

    name: str
    reason: str


class Remembered(BaseModel):
    """What came of remembering."""

    remembered: list[Source]
    failed: list[Failed]
    seconds: float


class Forgotten(BaseModel):
    """What came of forgetting. Retired adapters are off the shelf; rebuilding makes some of them again."""

    forgotten: str
    chunks: int
    adapters_retired: list[str]
    adapters_rebuilding: list[str]
    jobs: list[str] = Field(description="The jobs that rebuild them")
    traces_left: bool = Field(description="Another program was reading: the next change removes the rest")


class Passage(BaseModel):
    """A chunk of a source."""

    heading: str
    text: str


class SourceText(BaseModel):
    """What is known of a source, in order."""

    label: str
    passages: list[Passage]


class Question(Asked):
    """What to look up."""

    question: Annotated[str, Field(min_length=1, max_length=4000)]
    model: Annotated[str, Field(max_length=400)] | None = None
    closed_book: bool = False


class Citation(BaseModel):
    """Where a statement is from; `number` is the one in the answer."""

    number: int
    source: str
    heading: str
    text: str


class Answer(BaseModel):
    """An answer; `quoted`: its words are a note's. `known`: whether there was one."""

    answer: str
    citations: list[Citation]
    quoted: bool
    known: bool
    seconds: float


# Study --------------------------------------------------------------------------------------------


class StudyPlan(BaseModel):
    """What a study would do now."""

    sources: int
    chunks: int
    new_chunks: int = Field(description="Chunks that no lesson was made of yet")
    lesson_tokens: int
    minutes: float = Field(description="The time that was offered")
    expected_minutes: float
    epochs: float = Field(description="How often the lessons can be seen in the time")
    waits: int = Field(description="Chunks that would wait for the next study")
    measured: bool = Field(description="Whether an earlier study on this base gave the speeds")
    unfinished: bool = Field(description="Whether there is a stopped study; it goes on unless `restart`")


class StudyOrder(Asked):
    """A study to queue, or to plan: for so many minutes, or until HH:MM."""

    name: Annotated[str, Field(pattern=NAME)] = "notes"
    sources: Annotated[list[int | str], Field(max_length=10_000)] | None = Field(
        None, description="Ids or labels; all by default"
    )
    minutes: Annotated[float, Field(gt=0, le=7 * 24 * 60)] | None = None
    until: Annotated[str, Field(pattern=r"^([01]?\d|2[0-3]):[0-5]\d$")] | None = None
    base: Annotated[str, Field(max_length=200)] | None = None
    restart: bool = Field(False, description="Begin again instead of going on with an unfinished study")


# Adapters -----------------------------------------------------------------------------------------


class Adapter(BaseModel):
    """An adapter on the shelf; figures are null where no exam was sat."""

    name: str
    model: str = Field(description="The stack to chat with: its base with it alone")
    base: str
    bytes: int
    rank: int | None
    promoted: bool = Field(description="False for a candidate whose exam failed, see `reasons`")
    reasons: list[str]
    recall_before: float | None
    recall_after: float | None
    recall_with_notes: float | None
    forgetting: float | None
    fabrication: float | None
    made_at: int | None
    sources: list[str]
    can_promote: bool
    can_roll_back: bool
    problem: str | None = None


class Adapters(BaseModel):
    """The shelf."""

    adapters: list[Adapter]


class ExamQuestion(BaseModel):
    """A question of the exam with what was said before and after the study; `topic` is a source."""

    question: str
    expected: str
    topic: str | None
    before: str | None
    after: str
    right_before: bool | None
    right_after: bool


class Topic(BaseModel):
    """The exam's questions about one source."""

    name: str
    questions: int
    recall_before: float | None
    recall_after: float


class AdapterDetail(Adapter):
    """An adapter with its card and its exam; `exam` is empty where none was kept."""

    card: dict[str, Any]
    exam: list[ExamQuestion]
    topics: list[Topic]


class Removed(BaseModel):
    """What is gone."""

    removed: str
