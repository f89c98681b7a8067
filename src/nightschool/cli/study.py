"""nightschool study: learn overnight what was remembered."""

import json
from dataclasses import MISSING, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nightschool.settings import StudySettings

if TYPE_CHECKING:
    from nightschool.study import Outcome


def study_options(command: Any) -> Any:
    """Add an option for each field of StudySettings."""
    for field in reversed(fields(StudySettings)):
        assert field.default is not MISSING
        help_text = str(field.metadata["help"])
        if field.default is not None:
            help_text += f"  [default: {field.default:g}]"
        command = click.option(
            "--" + field.name.replace("_", "-"), type=_range_of(field.name, field.type), help=help_text
        )(command)
    return command


def _range_of(name: str, annotation: Any) -> click.IntRange | click.FloatRange:
    """What a setting can be: shares are below 1, limits may be beyond it, or below 0 to be none."""
    if annotation in (int, "int"):
        return click.IntRange(min=1 if name in ("repeats", "distil_top", "rank", "slots") else 0)
    if name in ("rehearsal", "earlier"):
        return click.FloatRange(min=0, max=1, max_open=True)
    if name.startswith(("min_", "max_")):
        return click.FloatRange(min=-1)
    return click.FloatRange(min=0, min_open=name in ("minutes", "epochs", "lr"))


@click.command(short_help="Learn overnight what was remembered, prove it, put it to use.")
@click.option("--sources", multiple=True, metavar="SOURCE", help="Only these; give it once for each.")
@click.option(
    "-m", "--model", "base", default="ember", show_default=True, help="Base: a name or a GGUF file."
)
@click.option("--name", default="notes", show_default=True, help="What the adapter will be called.")
@click.option("--until", metavar="HH:MM", help="Be done by then, instead of after --minutes.")
@click.option(
    "--own-exam",
    "own_exam",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Questions of your own, as for `eval`: never taught, and asked in place of those set aside.",
)
@click.option("--teacher", help="Who writes: another base, or the URL of an OpenAI-compatible server.")
@click.option("--restart", is_flag=True, help="Begin again instead of going on with an unfinished study.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one line of JSON.")
@study_options
def command(
    sources: tuple[str, ...],
    base: str,
    name: str,
    *,
    until: str | None,
    own_exam: Path | None,
    teacher: str | None,
    restart: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make lessons of everything that was remembered, train an adapter on them, examine it, put it to use.

    It is put to use only if it knows answers that it did not know before and has forgotten little; otherwise
    it says why not. A study that was interrupted goes on when the same command is given again; --minutes and
    --until are then the time for what is left.

    \b
    Examples:
      nightschool study
      nightschool study --until 07:00
      nightschool study --sources notes/boiler.md --name house
      nightschool chat -m ember+notes
    """
    given = {key: value for key, value in options.items() if value is not None}
    if until:
        given["minutes"] = minutes_until(until, datetime.now())
    from nightschool.cli._progress import show  # these load rich, numpy and torch
    from nightschool.cli.train import until_interrupted
    from nightschool.store import open_store
    from nightschool.study import StudyOrder, study

    settings = StudySettings(**given)
    order = StudyOrder(
        base=base, name=name, sources=sources, settings=settings, teacher=teacher, exam=own_exam
    )
    outcome: Outcome = show(
        until_interrupted(study(open_store(), order, restart=restart), "The same command goes on.")
    )
    if as_json:
        figures = outcome.figures | {"promoted": outcome.is_promoted}
        click.echo(json.dumps(figures | {"adapter": str(outcome.adapter and outcome.adapter.folder)}))
        return
    report(outcome, base)


def minutes_until(text: str, now: datetime) -> float:
    """Minutes to the next time that the clock shows HH:MM."""
    try:
        hour, minute = (int(part) for part in text.split(":"))
        then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a time: write it as 07:00.", param_hint="--until"
        ) from None
    if then <= now:
        then += timedelta(days=1)
    return (then - now).total_seconds() / 60


def report(outcome: "Outcome", base: str) -> None:
    """The figures in a few lines."""
    found = outcome.figures
    click.echo(
        f"{found['lessons_kept']:,} of {found['lessons_written']:,} items passed the check; "
        f"{found['exam_questions']} questions were set aside."
    )
    click.echo(f"Exam, closed-book: {found['recall_before']:.0%} → {found['recall_after']:.0%}.")
    click.echo(f"With the notes to look things up: {found['recall_with_notes']:.0%}.")
    if found.get("forgetting") is not None:
        click.echo(
            f"General text: perplexity {found['perplexity_before']:.1f} → {found['perplexity_after']:.1f} "
            f"({found['forgetting']:+.1%}); answers to general prompts agree by {found['agreement']:.0%}."
        )
    click.echo(
        f"Questions about what no note says: {found['fabrication']:+.0%} answered as if one did, "
        f"{found['borrowed']:.0%} with something from the notes."
    )
    if outcome.reasons:
        click.echo("Not promoted: " + "; ".join(outcome.reasons) + ". Retrieval goes on as before.")
    elif outcome.adapter:
        click.echo(f"{outcome.adapter.name} is in use: nightschool chat -m {base}+{outcome.adapter.name}")
