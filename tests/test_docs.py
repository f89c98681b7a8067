"""The documents are true: pages made from code are fresh, links lead somewhere, commands and files exist."""

import re
import runpy
from pathlib import Path

import click
import pytest
from test_cli import parse

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "nightschool"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for folder in ("docs", "bench", "recipes") for page in ROOT.glob(f"{folder}/**/*.md")),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request) -> Path:
    return request.param


@pytest.fixture
def text(page) -> str:
    return page.read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The names that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere(page, text):
    for match in LINK.finditer(FENCE.sub("", text)):
        link = next(group for group in match.groups() if group)
        target, _, anchor = link.partition("#")
        if re.match(r"https?://", link):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./~#?=&%+@:,-]*)?", link), f"{link} is no address"
            continue
        there = page.parent / target if target else page
        assert there.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{link}: no such heading"


def shown_commands(text: str, program: str) -> list[str]:
    """What a reader may type: lines of code blocks, with or without a prompt, and code in running text."""
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    found = [line.strip().removeprefix("$ ") for line in lines]
    return [line for line in found if line.startswith(f"{program} ")]


def test_commands_can_be_typed(page, text):
    for line in shown_commands(text, "nightschool"):
        if "COMMAND" in line or re.search(
            r"  +\S", line.split("#")[0]
        ):  # a usage line, or a transcript's table
            line = re.split(r"  +", line)[0]
        if "COMMAND" in line:
            continue
        try:
            parse(line)
        except (click.UsageError, ValueError) as error:
            pytest.fail(f"{line!r} cannot be typed: {error}")


def test_make_targets_exist(page, text):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in shown_commands(text, "make"):
        words = [word for word in line.split("#")[0].split()[1:] if "=" not in word]
        assert set(words[:1]) <= targets, f"{line!r}: no such target"


def test_files_named_in_code_marks_exist(page, text):
    names = re.findall(r"`((?:src|tests|bench|recipes|docs|\.ci)/[\w./-]+)`", FENCE.sub("", text))
    names += re.findall(r"python ((?:bench|docs|recipes)/\S+\.py)", text)
    for name in names:
        assert (ROOT / name).exists(), f"there is no {name}"


def test_the_page_of_commands_is_what_the_commands_say():
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))["page"]()
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == made, "run `make docs`"


def test_every_module_has_a_line_in_the_design():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    modules = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    missing = sorted(name for name in modules - {"__init__", "__main__"} if f"`{name}`" not in design)
    assert not missing, f"docs/design.md, section 2, does not tell what {', '.join(missing)} are for"


def test_every_variable_of_the_environment_is_told():
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[)[\"'](\w+)[\"']", code))
    assert {"NIGHTSCHOOL_HOME", "NIGHTSCHOOL_ENGINE", "NIGHTSCHOOL_DEBUG"} <= read
    assert not {name for name in read if f"`{name}`" not in commands and not name.startswith("XDG_")}


def test_pages_speak_of_the_project_only(page, text):
    for pattern in (r"/home/\w+", r"/root\b", r"/work/main", r"/tmp/\w", r"\bTODO\b"):
        assert not re.search(pattern, text), f"{pattern} does not belong here"


def test_the_guide_for_contributors_stays_short():
    assert (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").count("\n") < 100
