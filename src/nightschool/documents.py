"""Files → text with headings: Markdown, text, HTML, PDF, DOCX, EPUB, CSV, JSON, source code.

Plain files are kept as they are, so a position in the text is one in the file; the others are turned into
paragraphs. A file that cannot be read raises FileFormatError with the reason; nothing here knows of chunks
or of the database.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nightschool.chunks import MAX_DOCUMENT, Document, Heading
from nightschool.errors import FileFormatError, NotFound

MAX_FILE_BYTES = 64 << 20
PROSE = {".md", ".markdown", ".mdown", ".txt", ".text", ".rst", ".org", ".adoc", ".tex", ".log", ".srt"}
CODE = set(
    ".py .js .ts .jsx .tsx .java .kt .c .h .cc .cpp .hpp .cs .go .rs .rb .php .swift .scala .lua .sh .sql .r"
    " .jl .pl .hs .ml .ex .exs .clj .zig .vue .css .toml .yaml .yml .ini .cfg".split()
)
HASH_HEADINGS = {".md", ".markdown", ".mdown"}


def find_files(folder: Path) -> Iterator[Path]:
    """The readable files of a folder, in order of their names; hidden ones and links are left alone."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left_out(name))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and is_readable(path) and not path.is_symlink():
                yield path


def _is_left_out(folder: str) -> bool:
    return folder.startswith(".") or folder in ("node_modules", "__pycache__")


def is_readable(path: Path) -> bool:
    """Whether a file of this kind is read when its folder is given."""
    return path.suffix.lower() in PROSE | CODE | set(READERS)


def read_document(path: Path) -> Document:
    """Read a file. Raises NotFound, or FileFormatError with the reason."""
    try:
        size_bytes = path.stat().st_size
        if not path.is_file():
            raise FileFormatError("it is not a file")
        if size_bytes > MAX_FILE_BYTES:
            raise FileFormatError(f"it has {size_bytes >> 20} MB, and the limit is {MAX_FILE_BYTES >> 20} MB")
        return parse_document(path.read_bytes(), path.name)
    except FileNotFoundError as error:
        raise NotFound("it is not there") from error
    except OSError as error:
        raise FileFormatError(f"it cannot be read: {error.strerror or error}") from error


def parse_document(data: bytes, name: str) -> Document:
    """Read the bytes of a file called `name`, which says what kind it is. Raises FileFormatError."""
    suffix = Path(name).suffix.lower()
    reader = READERS.get(suffix) or _guess(data) or _read_plain
    document = reader(data, name)
    if len(document.text) > MAX_DOCUMENT:
        raise FileFormatError(f"it has more than {MAX_DOCUMENT:,} characters of text: give it in parts")
    if not document.text.strip():
        raise FileFormatError("there is no text in it")
    return document


def _guess(data: bytes) -> "Reader | None":
    """What a file without a known ending is, by its first bytes."""
    if data.startswith(b"%PDF-"):
        return _read_pdf
    if re.match(rb"\s*<(!doctype html|html)", data[:200], re.IGNORECASE):
        return _read_html
    return None


# Plain text ---------------------------------------------------------------------------------------


def decode(data: bytes) -> str:
    """UTF-8, or UTF-16 with its mark, or the Western single-byte encoding; binary data is refused."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    if "\0" in text or sum(character < " " for character in text[:4096] if character not in "\t\n\r\f") > 40:
        raise FileFormatError("it is not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_plain(data: bytes, name: str) -> Document:
    text, path = decode(data), Path(name)
    suffix = path.suffix.lower()
    if suffix in HASH_HEADINGS:
        return read_markdown(text, path.stem)
    if suffix in CODE:
        return Document(path.name, text, tuple(_code_headings(text)))
    return Document(path.stem, text)


FENCE = re.compile(r" {0,3}(```+|~~~+)")
HASHES = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")


def read_markdown(text: str, title: str) -> Document:
    """Markdown as it stands; its title is the first heading of level 1, else the one given."""
    headings = tuple(_markdown_headings(text))
    first = next((heading.text for heading in headings if heading.level == 1), title)
    return Document(first, text, headings)


def _markdown_headings(text: str) -> Iterator[Heading]:
    """CommonMark's two kinds: hashes before, or a line of = or - below; none inside fenced code."""
    fence = ""
    start, before = 0, ""
    before_start = 0
    matter = re.match(r"---\n.*?\n(---|\.\.\.)\n", text, re.DOTALL)  # a block of settings at the top
    skip_to = matter.end() if matter else 0
    for line in text.splitlines(keepends=True):
        stop, bare = start + len(line), line.rstrip("\n")
        mark = FENCE.match(bare)
        if start < skip_to:
            bare = ""
        elif fence:
            fence = "" if mark and bare.strip() == mark[1] and mark[1].startswith(fence) else fence
            bare = ""
        elif mark:
            fence, bare = mark[1], ""
        elif match := HASHES.match(bare):
            yield Heading(start, stop, len(match[1]), plain(match[2]))
            bare = ""
        elif before.strip() and (match := UNDERLINE.match(bare)):
            yield Heading(before_start, stop, 1 if "=" in match[1] else 2, plain(before))
            bare = ""
        before, before_start, start = bare, start, stop


def plain(text: str) -> str:
    """A line of Markdown without its marks."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[*_`]+", "", text).strip()


CODE_HEADING = re.compile(
    r"^([ \t]*)(?:(?:export|public|private|protected|static|async|pub|abstract|final|default)\s+)*"
    r"((?:class|def|function|fn|func|struct|enum|trait|interface|impl|module|type)\s+\w+(?:(?:\.|::)\w+)*)",
    re.MULTILINE,
)


def _code_headings(text: str) -> Iterator[Heading]:
    """Definitions, by their indentation."""
    for match in CODE_HEADING.finditer(text):
        level = 1 + len(match[1].expandtabs(4)) // 4
        yield Heading(match.start(2), match.end(2), level, match[2])


# Tables and records -------------------------------------------------------------------------------


def _read_csv(data: bytes, name: str) -> Document:
    """A line for each row, every value beside the name of its column: a row can be found by itself."""
    text = decode(data)
    try:
        dialect: Any = csv.Sniffer().sniff(text[:4096], delimiters=",;\t|")
    except csv.Error:
        dialect = "excel-tab" if name.lower().endswith(".tsv") else "excel"
    try:
        rows = [row for row in csv.reader(io.StringIO(text), dialect) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise FileFormatError(f"it is no table: {error}") from error
    if not rows:
        raise FileFormatError("there is no text in it")
    header = [cell.strip() for cell in rows[0]]
    return Document(Path(name).stem, "\n".join(_record(header, row) for row in rows[1:] or rows))


def _record(header: list[str], row: list[str]) -> str:
    cells = [
        f"{header[at]}: {cell.strip()}" if at < len(header) and header[at] else cell.strip()
        for at, cell in enumerate(row)
        if cell.strip()
    ]
    return "; ".join(" ".join(cell.split()) for cell in cells)


def _read_json(data: bytes, name: str) -> Document:
    """Records as paragraphs of `key: value`; JSON Lines too."""
    text = decode(data)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _json_lines(text)
    items = value if isinstance(value, list) else [value]
    try:
        return Document(Path(name).stem, "\n\n".join("\n".join(_leaves(item, "")) for item in items))
    except RecursionError as error:
        raise FileFormatError("its values are nested too deeply") from error


def _json_lines(text: str) -> list[Any]:
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"it is no JSON: {error}") from error


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    elif value not in (None, ""):
        yield f"{path}: {value}" if path else str(value)


# Formats that need a library ----------------------------------------------------------------------
# Imported when the first such file comes: they would make every start slower.


def _read_html(data: bytes, name: str) -> Document:
    from nightschool.rich_documents import read_html

    return read_html(data, Path(name).stem)


def _read_pdf(data: bytes, name: str) -> Document:
    from nightschool.rich_documents import read_pdf

    return read_pdf(data, Path(name).stem)


def _read_docx(data: bytes, name: str) -> Document:
    from nightschool.rich_documents import read_docx

    return read_docx(data, Path(name).stem)


def _read_epub(data: bytes, name: str) -> Document:
    from nightschool.rich_documents import read_epub

    return read_epub(data, Path(name).stem)


Reader = Callable[[bytes, str], Document]
READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".html": _read_html,
    ".htm": _read_html,
    ".xhtml": _read_html,
    ".pdf": _read_pdf,
    ".docx": _read_docx,
    ".epub": _read_epub,
}
