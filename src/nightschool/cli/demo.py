"""nightschool demo: see it work on the embedded model."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from nightschool.demo import Findings


@click.command(short_help="See it work: teach the embedded model a page of notes, in minutes.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON: the figures.")
def command(as_json: bool) -> None:
    """Give the embedded model a page of notes that no model can know, ask about it, have it study the page.

    It writes its lessons itself, learns them, and is examined before and after, without the notes in sight.
    Takes two minutes or three on two cores, in a home of its own. The adapter stays: talk to it with
    `nightschool chat -m ember+demo`.

    \b
    Examples:
      nightschool demo
      nightschool demo --json
    """
    from rich.console import Console  # these load rich and torch

    from nightschool.cli._progress import show
    from nightschool.cli.train import until_interrupted
    from nightschool.demo import demonstrate, notes

    out = Console(stderr=as_json, highlight=False)
    paragraph = notes().read_text(encoding="utf-8").split("\n\n")[1]
    out.rule("a page of notes that no model can know", align="left")
    out.print(" ".join(paragraph.split()))
    out.print(f"[dim]… the whole page: {notes()}[/dim]\n", soft_wrap=True)
    out.rule("remember · ask · study", align="left")
    findings: Findings = show(until_interrupted(demonstrate(), "Run the demo again: it takes minutes."))
    _report(findings, out)
    if as_json:
        click.echo(json.dumps(findings.as_json()))


def _report(findings: "Findings", out: "Console") -> None:
    from rich.table import Table  # rich is slow to load

    figures, found = findings.as_json(), findings.figures
    out.rule("before · after", align="left")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for title in ("asked, without the notes in sight", "before", "after"):
        table.add_column(title, header_style="bold")
    for each in findings.shown:
        before = _marked(each.before or "", bool(each.right_before))
        table.add_row(each.question, before, _marked(each.after, each.right_after))
    out.print(table)
    count = len(findings.exam)
    out.print(
        f"Remembered in {findings.remember_s:.2f} s; with the notes at hand it answers "
        f"[bold]{figures['ask_recall']:.0%}[/bold] of {count} questions."
    )
    out.print(
        f"Lessons: {found['lessons_written']:,} written by the model itself in {found['writing_s']:.0f} s, "
        f"{found['lessons_kept']:,} passed the check."
    )
    out.print(
        f"Exam: [bold]{found['recall_before']:.0%} → {found['recall_after']:.0%}[/bold] of {count} "
        "questions, in wordings that stand in no lesson, without the notes."
    )
    out.print(
        f"Forgetting: {found['forgetting']:+.1%} perplexity on general text "
        f"({found['perplexity_before']:.1f} → {found['perplexity_after']:.1f})."
    )
    if found["reasons"]:
        out.print(f"It would not be put to use: {'; '.join(found['reasons'])}.")
    receipt = findings.receipt
    out.print(
        f"Receipt: {receipt.seconds:.0f} s in all; {figures['train_tokens']:,} lesson tokens in "
        f"{figures['train_s']:.0f} s ({figures['train_tokens_per_s']:,.0f} tokens/s); "
        f"{receipt.peak_rss_bytes / 1e9:.2f} GB; {receipt.energy_j / 1000:.1f} kJ "
        f"({receipt.energy_source}); {receipt.cost_eur * 100:.3f} euro cents."
    )
    out.rule("chat", align="left")
    for question, reply in findings.chat:
        out.print(f"  > {question}\n  {reply}", markup=False)
    _next_steps(findings, out)


def _next_steps(findings: "Findings", out: "Console") -> None:
    out.rule("files", align="left")
    for file in sorted(findings.adapter.folder.iterdir()):
        out.print(f"  {file}  [dim]{file.stat().st_size / 1e6:.1f} MB[/dim]", soft_wrap=True)
    out.rule("next", align="left")
    for line in (
        "nightschool chat -m ember+demo                    talk to it",
        "nightschool adapters show demo                    its card",
        "nightschool export demo --to gguf -o demo.gguf    for llama.cpp, Ollama, LM Studio",
        "nightschool pull owner/model:Q4_K_M               a larger base",
        "nightschool remember notes/                       your own notes, to ask and to study",
    ):
        out.print("  " + line)


def _marked(reply: str, right: bool) -> str:
    from rich.markup import escape  # rich is slow to load

    colour, mark = ("green", "✓") if right else ("red", "✗")
    return f"[{colour}]{mark}[/{colour}] {escape(reply)}"
