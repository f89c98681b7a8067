"""HTML, PDF, DOCX and EPUB → text with headings, each by a library that is kept well.

DOCX and EPUB are archives: what they would unpack to is checked before anything is unpacked.
"""

import io
import logging
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError

import mammoth
import pypdf
from selectolax.lexbor import LexborHTMLParser, LexborNode

from nightschool.chunks import MAX_DOCUMENT, Document, Heading
from nightschool.errors import FileFormatError

MAX_UNPACKED_BYTES = 256 << 20
MAX_MEMBERS = 20_000
MAX_PAGES = 20_000
SILENT = ("script", "style", "template", "noscript", "svg", "head", "nav", "iframe", "button", "select")
BLOCKS = set(
    "p div li ul ol dl dt dd tr table section article header footer main aside blockquote pre figure"
    " figcaption address form h1 h2 h3 h4 h5 h6 hr body".split()
)
# What the libraries let through when the objects in a file are not what they should be.
DAMAGED = (
    ValueError, TypeError, LookupError, AttributeError, RecursionError, OSError, EOFError, zlib.error,
    zipfile.BadZipFile, ExpatError,
)  # fmt: skip
HEADINGS = {f"h{level}": level for level in range(1, 7)}

logging.getLogger("pypdf").setLevel(logging.ERROR)  # it comments on every small flaw of a file


class _Text:
    """Paragraphs being put together, and where their headings stand."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.headings: list[Heading] = []

    def add(self, text: str, *, level: int = 0) -> None:
        """A paragraph; with a level, a heading."""
        if not text:
            return
        if level:
            stop = self.length + len(text)
            self.headings.append(Heading(self.length, stop, level, " ".join(text.split())))
        self.parts.append(text + "\n\n")
        self.length += len(text) + 2
        if self.length > MAX_DOCUMENT:
            raise FileFormatError(f"it has more than {MAX_DOCUMENT:,} characters of text: give it in parts")

    def document(self, title: str) -> Document:
        return Document(title, "".join(self.parts).rstrip() + "\n", tuple(self.headings))


# HTML ---------------------------------------------------------------------------------------------


def read_html(data: bytes | str, title: str) -> Document:
    """The visible text of a page, without navigation and scripts."""
    text = _Text()
    tree = _parse(data)
    _add_html(tree, text)
    named = tree.css_first("title")
    first = next((heading.text for heading in text.headings if heading.level == 1), "")
    return text.document((named.text(strip=True) if named else "") or first or title)


def _parse(data: bytes | str) -> LexborHTMLParser:
    return LexborHTMLParser(data)


def _add_html(tree: LexborHTMLParser, text: _Text) -> None:
    """Walk the tree in its order; a block element ends the paragraph before it and its own."""
    if tree.body is None:
        return
    words: list[str] = []
    level = 0
    for kind, node in _walk(tree.body):
        if kind == "text":
            words.append(node.text_content or "")
        elif node.tag == "br":
            words.append("\n")
        elif node.tag in ("td", "th"):
            words.append(" ")
        elif node.tag in BLOCKS:
            text.add(_tidy("".join(words), keep=node.tag == "pre"), level=level)
            words, level = [], HEADINGS.get(node.tag or "", 0) if kind == "open" else 0
    text.add(_tidy("".join(words), keep=False))


def _walk(root: LexborNode) -> Iterator[tuple[str, LexborNode]]:
    """Every node on entering ("open", or "text") and on leaving ("close"); without recursion."""
    stack: list[tuple[str, LexborNode]] = [("open", root)]
    while stack:
        kind, node = stack.pop()
        yield kind, node
        if kind != "open":
            continue
        stack.append(("close", node))
        children = [child for child in node.iter(include_text=True) if child.tag not in SILENT]
        stack.extend(("text" if child.tag == "-text" else "open", child) for child in reversed(children))


def _tidy(text: str, *, keep: bool) -> str:
    """One paragraph; line breaks that were asked for stay."""
    if keep:
        return text.strip("\n").rstrip()
    return "\n".join(line for line in (" ".join(part.split()) for part in text.split("\n")) if line)


# PDF ----------------------------------------------------------------------------------------------


def read_pdf(data: bytes, title: str) -> Document:
    """The text of a PDF, a heading for each page; scans have none."""
    text = _Text()
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise FileFormatError("it is locked with a password")
        named = str(reader.metadata.title or "").strip() if reader.metadata else ""
        for number, page in enumerate(reader.pages, 1):
            if number > MAX_PAGES:
                raise FileFormatError(f"it has more than {MAX_PAGES:,} pages")
            if words := page.extract_text().strip():
                text.add(f"Page {number}", level=1)
                text.add(words)
    except FileFormatError:
        raise
    except (pypdf.errors.PyPdfError, pypdf.errors.DependencyError) as error:
        raise FileFormatError(f"it is no PDF that can be read: {error}") from error
    except DAMAGED as error:
        raise FileFormatError(f"it is a damaged PDF ({type(error).__name__}: {error})") from error
    if not text.parts:
        raise FileFormatError("there is no text in it, perhaps only pictures of pages")
    return text.document(named or title)


# DOCX ---------------------------------------------------------------------------------------------


def read_docx(data: bytes, title: str) -> Document:
    """A Word document, by way of HTML: headings by their styles, tables, lists."""
    with _archive(data) as archive:
        _refuse_entities(_member(archive, "word/document.xml"))
    try:
        html = mammoth.convert_to_html(io.BytesIO(data), convert_image=mammoth.images.img_element(_no_image))
    except DAMAGED as error:
        raise FileFormatError(f"it is a damaged Word document ({type(error).__name__}: {error})") from error
    return read_html(html.value, title)


def _no_image(_: object) -> dict[str, str]:
    return {"src": ""}


# EPUB ---------------------------------------------------------------------------------------------


def read_epub(data: bytes, title: str) -> Document:
    """A book, in the order of its spine (EPUB 3.3, sections 4 and 5). Raises for one that is locked."""
    text = _Text()
    with _archive(data) as archive:
        names = set(archive.namelist())
        if "META-INF/encryption.xml" in names and "META-INF/rights.xml" in names:
            raise FileFormatError("it is locked by its seller")
        package = _package(archive)
        root = _xml(archive, package)
        named = root.findtext(".//{*}metadata/{http://purl.org/dc/elements/1.1/}title") or ""
        items = {item.get("id"): item.get("href", "") for item in root.iterfind(".//{*}manifest/{*}item")}
        for entry in root.iterfind(".//{*}spine/{*}itemref"):
            href = unquote(items.get(entry.get("idref"), "") or "").partition("#")[0]
            member = posixpath.normpath(posixpath.join(posixpath.dirname(package), href))
            if member in names:
                _add_html(_parse(_member(archive, member)), text)
    return text.document(named.strip() or title)


def _package(archive: zipfile.ZipFile) -> str:
    container = _xml(archive, "META-INF/container.xml")
    rootfile = container.find(".//{*}rootfile")
    if rootfile is None or not rootfile.get("full-path"):
        raise FileFormatError("it is no EPUB book")
    return str(rootfile.get("full-path"))


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    data = _member(archive, name)
    _refuse_entities(data)
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise FileFormatError(f"its part {name!r} is damaged: {error}") from error


def _refuse_entities(xml: bytes) -> None:
    if b"<!ENTITY" in xml:  # nothing needs them, and they can be made to grow without end
        raise FileFormatError("it defines entities, which are not read")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise FileFormatError(f"its part {name!r} is missing") from None


def _archive(data: bytes) -> zipfile.ZipFile:
    """Open an archive whose parts are whole, and together of a bearable size."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > MAX_UNPACKED_BYTES or len(members) > MAX_MEMBERS:
            raise FileFormatError(
                f"it would unpack to {unpacked >> 20} MB in {len(members):,} parts; the limits are "
                f"{MAX_UNPACKED_BYTES >> 20} MB and {MAX_MEMBERS:,}"
            )
        # A part may unpack to more than it declares, and read() would let it: this does so piece by piece.
        damaged = archive.testzip()
    except (*DAMAGED, RuntimeError, NotImplementedError) as error:
        raise FileFormatError(f"it is a damaged archive: {error}") from error
    if damaged:
        raise FileFormatError(f"its part {damaged!r} is damaged")
    return archive
