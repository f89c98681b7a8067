"""The JSON of /v1/fine_tuning: OpenAI's names, the values that make sense here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from nightschool.server.pagination import Page

Auto = Literal["auto"]
RANGES = {"n_epochs": (1, 1000), "batch_size": (1, 4096), "learning_rate_multiplier": (1e-3, 100)}
Text = Annotated[str, Field(min_length=1, max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class Asked(BaseModel):
    """A request: fields that are not named are refused."""

    model_config = ConfigDict(extra="forbid")


class Hyperparameters(Asked):
    """What may be chosen; "auto" leaves it to us."""

    n_epochs: int | Auto | None = Field(default="auto", description="How often each example is seen")
    batch_size: int | Auto | None = Field(default="auto", description="Examples in one step")
    learning_rate_multiplier: float | Auto | None = Field(
        default="auto", description="Times the learning rate that is chosen for the base"
    )

    @field_validator(*RANGES)
    @classmethod
    def within_range(cls, value: float | Auto | None, info: ValidationInfo) -> float | Auto | None:
        """Here rather than in the types: an error of a union names its members instead of the mistake."""
        low, high = RANGES[info.field_name or ""]
        if value in (None, "auto") or (not isinstance(value, str) and low <= (value or 0) <= high):
            return value
        raise PydanticCustomError("range", f"it must be from {low:g} to {high:g}, or 'auto'")


class Supervised(Asked):
    """The settings of supervised training."""

    hyperparameters: Hyperparameters | None = None


class Method(Asked):
    """How to train; only `supervised` is offered."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


class Order(Asked):
    """A fine-tuning job to create."""

    model: Text = Field(description="A base, or a model to go on from: ft:…, or base+adapter")
    training_file: Text
    validation_file: Text | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: Metadata | None = None
    integrations: list[dict[str, Any]] | None = None


class Error(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class Job(BaseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    hyperparameters: Hyperparameters
    method: Method
    seed: int
    user_provided_suffix: str | None
    metadata: dict[str, str] | None
    integrations: list[dict[str, Any]] = []
    error: Error | None


class Jobs(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[Job]
    has_more: bool


class Event(BaseModel):
    """A line of a job's log."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class Events(BaseModel):
    """A page of events, newest first."""

    object: Literal["list"] = "list"
    data: list[Event]
    has_more: bool


class Metrics(BaseModel):
    """Figures at a step; held-out ones are those of the whole validation file."""

    step: int
    train_loss: float | None
    train_mean_token_accuracy: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None
    full_valid_loss: float | None
    full_valid_mean_token_accuracy: float | None


class Checkpoint(BaseModel):
    """A model as it was at the end of an epoch, which can be talked to."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: Metrics


class Checkpoints(Page[Checkpoint]):
    """A page of checkpoints, newest first."""
