"""Command-line options made from a settings dataclass, so that names, defaults and help are written once."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import click

from nightschool.settings import TrainSettings

Command = TypeVar("Command", bound=Callable[..., Any])
CHOICES = {
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("auto", "int8", "bf16", "fp32", "packed"),
    "device": ("cpu", "cuda", "mps"),
}


def train_options(command: Command) -> Command:
    """Add an option for each field of TrainSettings."""
    for field in reversed(fields(TrainSettings)):
        name = "--" + field.name.replace("_", "-")
        assert field.default is not MISSING
        help_text = str(field.metadata["help"])
        if field.default not in (None, False, ()) and not isinstance(field.default, tuple):
            help_text += f"  [default: {field.default}]"
        if field.type == "bool" or field.type is bool:
            option = click.option(name, is_flag=True, default=None, help=help_text)
        elif field.name == "targets":
            option = click.option(
                name, metavar="NAMES", help=help_text + "  [default: all: q,k,v,o,gate,up,down]"
            )
        elif field.name in CHOICES:
            option = click.option(name, type=click.Choice(CHOICES[field.name]), help=help_text)
        else:
            option = click.option(name, type=_number(field.type), help=help_text)
        command = option(command)
    return command


def _number(annotation: Any) -> click.IntRange | click.FloatRange:
    """int or float, never negative."""
    least_open = "None" in str(annotation)  # left open means chosen; zero would mean nothing
    if "int" in str(annotation):
        return click.IntRange(min=1 if least_open else 0)
    return click.FloatRange(min=0, min_open=least_open)


def train_settings(options: dict[str, Any]) -> TrainSettings:
    """Take the training options out of a command's options and make the settings of them."""
    given = {field.name: options.pop(field.name) for field in fields(TrainSettings)}
    values = {name: value for name, value in given.items() if value is not None}
    if "targets" in values:
        values["targets"] = tuple(name.strip() for name in values["targets"].split(",") if name.strip())
        unknown = sorted(set(values["targets"]) - set(TrainSettings().targets))
        if unknown or not values["targets"]:
            raise click.BadParameter(
                f"choose from {', '.join(TrainSettings().targets)}, with commas between them.",
                param_hint="--targets",
            )
    return TrainSettings(**values)
