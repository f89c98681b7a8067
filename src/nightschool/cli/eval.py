"""nightschool eval: examine a base, an adapter or a stack."""

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command(short_help="Examine a base or adapter on questions and answers.")
@click.argument("exam", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-m", "--model", "stack_text", default="ember", show_default=True, help="base+adapter@0.5+…")
@click.option("--before", is_flag=True, help="Ask the bare base too, and compare.")
@click.option(
    "--general", type=click.Path(path_type=Path), help="Text whose perplexity must not rise: forgetting."
)
@click.option(
    "--slots", default=4, show_default=True, type=click.IntRange(1, 64), help="Questions asked at once."
)
@click.option("--json", "as_json", is_flag=True, help="Print all answers and figures as JSON.")
def command(
    exam: Path, stack_text: str, before: bool, general: Path | None, slots: int, as_json: bool
) -> None:
    """Ask the questions of EXAM (JSONL with "question" and "answer"), closed-book, and count what is right.

    \b
    Examples:
      nightschool eval exam.jsonl -m ember+work
      nightschool eval exam.jsonl -m ember+work --before --general general.txt --json
    """
    from nightschool.adapters import parse_stack  # these load rich and torch
    from nightschool.cli._progress import show
    from nightschool.evaluate import Result, sit_exam
    from nightschool.exam import load_exam

    questions = load_exam(exam)
    result: Result = show(
        sit_exam(parse_stack(stack_text), questions, before=before, general=general, slots=slots)
    )
    if as_json:
        click.echo(json.dumps(asdict(result) | {"forgetting": result.forgetting}))
        return
    for answer in result.answers:
        click.echo(f"{'✓' if answer.right else '✗'} {answer.question.question}\n    {answer.reply}")
        if not answer.right:
            click.echo(f"    expected: {answer.question.answer}")
    click.echo(f"\nrecall {result.recall:.0%} of {len(result.answers)} questions")
    if result.recall_before is not None:
        click.echo(f"recall of the bare base {result.recall_before:.0%}")
    if result.forgetting is not None:
        click.echo(
            f"forgetting {result.forgetting:+.1%} "
            f"(perplexity {result.perplexity_before:.2f} → {result.perplexity:.2f})"
        )
