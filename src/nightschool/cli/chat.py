"""nightschool chat: talk to a base, an adapter or a stack of them.

Answers go to stdout and everything else to stderr, so `echo question | nightschool chat > answer.txt` works.
It needs no torch: the engine answers.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nightschool.errors import ContextFull, NightschoolError
from nightschool.paths import home, write_text

if TYPE_CHECKING:
    from nightschool.answer import Citation, Memory
    from nightschool.engine import Engine, Sampling

PROMPT = "> "
HISTORY_LINES = 1000
# What a model writes must not steer the terminal: all control characters but tab and newline.
CONTROL = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\t\n"}
HELP = """\
/system TEXT   set the system message (empty: none) and begin anew
/clear         begin anew
/save FILE     add the conversation to FILE, as a line for `nightschool train`
/exit          leave, as Ctrl-D does
Ctrl-C stops an answer."""

Message = dict[str, str]


@click.command(short_help="Talk to a base, an adapter or a stack of them.")
@click.argument("prompt", nargs=-1)
@click.option(
    "-m", "--model", metavar="STACK", default="ember", show_default=True, help="base+adapter@scale+…"
)
@click.option("--system", metavar="TEXT", help="A system message.")
@click.option("--temperature", type=click.FloatRange(0), default=0.3, show_default=True, help="0: no chance.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Of an answer.")
@click.option("--seed", type=int, help="Makes answers repeatable.")
@click.option("--ctx", type=click.IntRange(64), help="Context in tokens  [default: the model's, up to 4096]")
@click.option("--threads", type=click.IntRange(1), help="[default: the physical cores]")
@click.option(
    "--memory", "with_memory", is_flag=True, help="Answer from what was remembered, with citations."
)
def command(
    prompt: tuple[str, ...],
    model: str,
    system: str | None,
    temperature: float,
    max_tokens: int,
    seed: int | None,
    ctx: int | None,
    threads: int | None,
    with_memory: bool,
) -> None:
    """Talk to a model here; with a PROMPT, or text piped in, answer once.

    \b
    Examples:
      nightschool chat
      nightschool chat -m ember+work@0.5+style
      nightschool chat -m work.gguf "Who keeps the key of the boathouse?"
      nightschool chat --system "Answer in one line." < question.txt
    """
    sampling: Sampling = {"temperature": temperature, "max_tokens": max_tokens}
    if seed is not None:
        sampling["seed"] = seed
    question = _question(prompt)
    with ExitStack() as opened:
        engine, stack = opened.enter_context(_start(model, ctx=ctx or 0, threads=threads or 0))
        talk = Talk(engine, stack, sampling=sampling, system=system)
        if with_memory:
            talk.memory = opened.enter_context(_memory(engine))
        if question is None:
            _converse(talk, model)
        else:
            _print_answer(talk.ask(question))
            _print_citations(talk)


def _question(prompt: tuple[str, ...]) -> str | None:
    """What is to be answered once: words of the command line, then what is piped in. None: a conversation."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    text = "\n\n".join(part for part in (" ".join(prompt), piped) if part)
    if not text and not sys.stdin.isatty():
        raise click.UsageError("There is no question: standard input is empty.")
    return text or None


@contextmanager
def _start(model: str, *, ctx: int, threads: int) -> "Iterator[tuple[Engine, dict[str, float]]]":
    """The engine with every part of the stack loaded; each part is checked against the base first."""
    from nightschool.adapters import check_fits, parse_stack, stack_paths  # these load numpy and httpx
    from nightschool.engine import Engine
    from nightschool.gguf import open_gguf
    from nightschool.hub import find_base

    stack = parse_stack(model)
    base, adapters = find_base(stack.base), stack_paths(stack)
    for path in adapters.values():
        check_fits(path, open_gguf(base.path))
    with _notice(f"loading {model} …"):
        engine = Engine(base.path, adapters=adapters, ctx=ctx, threads=threads)
    with engine:
        yield engine, stack.scales


@contextmanager
def _memory(engine: "Engine") -> "Iterator[Memory]":
    """What was remembered, for a base that can read; chunks without vectors get them meanwhile."""
    from nightschool.answer import Memory, can_read  # these load numpy
    from nightschool.hub import Base
    from nightschool.index import Index
    from nightschool.store import open_store
    from nightschool.vectors import catch_up, open_embedder

    if not can_read(Base(engine.base.stem, engine.base, "")):
        raise NightschoolError(
            f"{engine.base.stem} is too small to read notes: `nightschool ask` quotes them, "
            "`nightschool pull` gets a larger base."
        )
    with closing(open_store()) as db, open_embedder(db) as embedder, catch_up(embedder):
        yield Memory(Index(db, embedder), engine)


@contextmanager
def _notice(text: str) -> Iterator[None]:
    """Show a line on a terminal for as long as something takes."""
    if not sys.stderr.isatty():
        yield
        return
    click.echo(text, nl=False, err=True)
    try:
        yield
    finally:
        click.echo("\r" + " " * len(text) + "\r", nl=False, err=True)


class Talk:
    """A conversation so far. What was said before an answer was stopped stays in it."""

    def __init__(
        self, engine: "Engine", stack: dict[str, float], *, sampling: "Sampling", system: str | None
    ) -> None:
        self.engine = engine
        self.stack = stack
        self.sampling = sampling
        self.messages: list[Message] = []
        self.forgot = False  # whether the oldest turns no longer fit
        self.memory: Memory | None = None
        self.citations: tuple[Citation, ...] = ()  # what the last answer could be from
        self.begin(system)

    def begin(self, system: str | None) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": system}] if system else []

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else {"role": ""}
        return first["content"] if first["role"] == "system" else None

    def ask(self, text: str) -> Iterator[str]:
        """The pieces of an answer. A question without any answer is forgotten."""
        self.messages.append({"role": "user", "content": text})
        said = ""
        try:
            for piece in self._answer():
                said += piece
                yield piece
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()

    def _answer(self) -> Iterator[str]:
        while True:
            try:
                yield from self.engine.stream_chat(self._prompt(), stack=self.stack, **self.sampling)
                return
            except ContextFull:
                if not self._forget_oldest():
                    raise

    def _prompt(self) -> list[Message]:
        """What the model reads: with a memory, what fits the newest question stands beside it, only now."""
        if self.memory is None:
            return self.messages
        grounded = self.memory.ground(self.messages[-1]["content"], before=self.messages[:-1])
        self.citations = grounded.citations
        return grounded.messages

    def _forget_oldest(self) -> bool:
        """Drop the oldest question and its answer; False when only the newest question is left."""
        start = 1 if self.system else 0
        if len(self.messages) <= start + 2:
            return False
        del self.messages[start : start + 2]
        self.forgot = True
        return True

    def save(self, path: Path) -> None:
        """Add the conversation to a JSONL file of OpenAI's chat form, which `train` reads."""
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        write_text(path, before + json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")


def _print_answer(pieces: Iterator[str]) -> None:
    """Write as it comes, less the blanks it begins with."""
    begun = False
    for piece in pieces:
        text = piece.translate(CONTROL) if sys.stdout.isatty() else piece
        text = text if begun else text.lstrip()
        begun = begun or bool(text)
        click.echo(text, nl=False)
    click.echo()


def _print_citations(talk: Talk) -> None:
    """The sources that the last answer names, or, where it names none, those it was given."""
    if not talk.citations:
        return
    said = talk.messages[-1]["content"] if talk.messages else ""
    named = {int(number) for number in re.findall(r"\[(\d{1,2})\]", said)}
    for citation in talk.citations:
        if not named or citation.number in named:
            click.echo(str(citation).translate(CONTROL), err=True)


# A conversation -----------------------------------------------------------------------------------


def _converse(talk: Talk, model: str) -> None:
    """Questions and answers until Ctrl-D or /exit."""
    click.echo(f"{model}. /help shows the commands, Ctrl-D leaves.", err=True)
    with _line_editing(home() / "chat_history"):
        while True:
            try:
                line = _read_line().strip()
            except EOFError:
                click.echo(err=True)
                return
            except KeyboardInterrupt:
                click.echo("\nCtrl-D leaves.", err=True)
                continue
            if line == "/exit":
                return
            if line:
                _respond(talk, line)


def _read_line() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    click.echo(PROMPT, nl=False, err=True)  # input() would write it among the answers
    return input()


def _respond(talk: Talk, line: str) -> None:
    """Run a command or answer a question; what goes wrong is said, and the conversation goes on."""
    try:
        if re.match(r"/[a-z]+( |$)", line):
            _run_command(talk, line)
        else:
            _print_answer(talk.ask(line))
            _print_citations(talk)
    except KeyboardInterrupt:
        click.echo("\n[stopped]", err=True)
    except NightschoolError as error:
        click.echo(f"\n{error}", err=True)
    if talk.forgot:
        click.echo("[the oldest turns no longer fit into the context and were left out]", err=True)
        talk.forgot = False


def _run_command(talk: Talk, line: str) -> None:
    name, _, argument = line.partition(" ")
    match name:
        case "/clear":
            talk.begin(talk.system)
            click.echo("[a new conversation]", err=True)
        case "/system":
            talk.begin(argument or None)
            click.echo(f"[a new conversation {'with' if argument else 'without'} a system message]", err=True)
        case "/save" if argument:
            _save(talk, Path(argument).expanduser())
        case _:
            click.echo(HELP, err=True)


def _save(talk: Talk, path: Path) -> None:
    try:
        talk.save(path)
    except (OSError, ValueError) as error:  # ValueError: an old file that is no text
        click.echo(f"{str(path)!r} cannot be written: {error}", err=True)
    else:
        click.echo(f"[added to {path}]", err=True)


@contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Arrow keys and the questions of earlier days, where Python has readline."""
    try:
        import readline  # not on Windows
    except ImportError:
        yield
        return
    with suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        history.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            readline.write_history_file(history)
            history.chmod(0o600)
