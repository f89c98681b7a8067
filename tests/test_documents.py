"""Files of every kind, made by other programs' writers or by hand, and files that cannot be read."""

import io
import os
import zipfile

import docx
import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool import documents, rich_documents
from nightschool.documents import find_files, parse_document, read_document
from nightschool.errors import FileFormatError, NotFound


def headings(document):
    found = []
    for heading in document.headings:
        assert heading.text in " ".join(document.text[heading.start : heading.stop].split())
        found.append((heading.level, heading.text))
    return found


# Plain files --------------------------------------------------------------------------------------


def test_markdown_is_kept_as_it_is_and_its_headings_are_known():
    text = (
        "---\ntitle: x\n# not: one\n---\n# The *boiler* #\n\nText.\n\n```\n# code\n```\n\n"
        "Reset\n-----\n\n### [Deep](http://x)\n#hashtag\n"
    )
    document = parse_document(text.encode(), "boiler.md")
    assert document.text == text
    assert document.title == "The boiler"
    assert [entry[1] for entry in [(h.level, h.text) for h in document.headings]] == [
        "The boiler", "Reset", "Deep",
    ]  # fmt: skip
    assert [heading.level for heading in document.headings] == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_in_the_usual_encodings_is_read(encoding):
    data = "Das Café öffnet um acht.\r\nGenau.".encode(encoding)
    document = parse_document(data, "a.txt")
    assert (document.title, document.text) == ("a", "Das Café öffnet um acht.\nGenau.")


def test_definitions_are_the_headings_of_source_code():
    code = "import os\n\nclass Boiler:\n    def reset(self):\n        pass\n\nasync def main():\n    pass\n"
    document = parse_document(code.encode(), "boiler.py")
    assert headings(document) == [(1, "class Boiler"), (2, "def reset"), (1, "def main")]
    assert document.title == "boiler.py"


def test_every_row_of_a_table_names_its_columns():
    document = parse_document(b'name;age;note\nAnn;83;"keeps; bees"\nBob;;\n', "people.csv")
    assert document.text == "name: Ann; age: 83; note: keeps; bees\nname: Bob"
    assert parse_document(b"a\tb\n1\t2\n", "t.tsv").text == "a: 1; b: 2"


def test_json_becomes_paragraphs_of_keys_and_values():
    data = b'[{"name": "Ann", "likes": {"food": ["figs", "tea"]}}, {"name": "Bob", "x": null}]'
    expected = "name: Ann\nlikes.food: figs\nlikes.food: tea\n\nname: Bob"
    assert parse_document(data, "a.json").text == expected
    lines = b'{"name": "Ann", "likes": {"food": ["figs", "tea"]}}\n{"name": "Bob"}\n'
    assert parse_document(lines, "a.jsonl").text == expected


# HTML, PDF, DOCX, EPUB ----------------------------------------------------------------------------

PAGE = """<!doctype html><html><head><title>The boiler</title><style>p {}</style></head><body>
<nav>Home</nav><h1>Boiler &amp; pump</h1><p>It is <b>old</b>.<br>Very.</p><script>alert(1)</script>
<div>Loose<p>para</div><h2>Reset</h2><ul><li>Hold<li>Wait</ul><pre>a
  b</pre><table><tr><th>x<th>y</tr><tr><td>1<td>2</table><p>unclosed"""


def test_html_gives_its_visible_text_in_order():
    document = parse_document(PAGE.encode(), "a.html")
    assert document.title == "The boiler"
    assert document.text.split("\n\n") == [
        "Boiler & pump", "It is old.\nVery.", "Loose", "para", "Reset", "Hold", "Wait", "a\n  b", "x y",
        "1 2", "unclosed\n",
    ]  # fmt: skip
    assert headings(document) == [(1, "Boiler & pump"), (2, "Reset")]
    assert parse_document(PAGE.encode(), "saved page").text == document.text


def minimal_pdf(*pages: str) -> bytes:
    """Written by hand from the PDF reference, one line of Helvetica a page."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * at} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    start = out.rindex(b"xref\n0")
    return out + f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()


def test_a_pdf_has_a_heading_for_each_page():
    document = parse_document(minimal_pdf("The boiler is old.", "Hold the knob."), "boiler.pdf")
    assert headings(document) == [(1, "Page 1"), (1, "Page 2")]
    assert document.text == "Page 1\n\nThe boiler is old.\n\nPage 2\n\nHold the knob.\n"
    assert parse_document(minimal_pdf("It is known by its first bytes."), "x").text.startswith("Page 1")


def test_a_pdf_without_text_says_so_and_a_locked_one_too():
    with pytest.raises(FileFormatError, match="only pictures"):
        parse_document(minimal_pdf(""), "scan.pdf")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(minimal_pdf("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    with pytest.raises(FileFormatError, match="locked with a password"):
        parse_document(out.getvalue(), "locked.pdf")


def word_file() -> bytes:
    document = docx.Document()
    document.add_heading("Boiler", 1)
    document.add_paragraph("It is old.")
    document.add_heading("Reset", 2)
    document.add_paragraph("Hold the knob.", style="List Bullet")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "Pressure", "2 bar"
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_a_word_document_keeps_its_headings_lists_and_tables():
    document = parse_document(word_file(), "boiler.docx")
    assert headings(document) == [(1, "Boiler"), (2, "Reset")]
    assert "Hold the knob." in document.text
    assert "Pressure" in document.text and "2 bar" in document.text
    assert document.title == "Boiler"


CONTAINER = (
    '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">'
    '<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles>'
    "</container>"
)
PACKAGE = (
    '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
    '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Boilers</dc:title></metadata><manifest>'
    '<item id="b" href="text/two%20b.xhtml"/><item id="a" href="text/one.xhtml"/></manifest>'
    '<spine><itemref idref="a"/><itemref idref="b"/><itemref idref="gone"/></spine></package>'
)


def epub(**changes: str) -> bytes:
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE,
        "OEBPS/text/one.xhtml": "<html><body><h1>One</h1><p>Old boilers.</p></body></html>",
        "OEBPS/text/two b.xhtml": "<html><body><h1>Two</h1><p>New boilers.</p></body></html>",
    } | changes
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            if text:
                archive.writestr(name, text)
    return out.getvalue()


def test_a_book_is_read_in_the_order_of_its_spine():
    document = parse_document(epub(), "b.epub")
    assert document.title == "Boilers"
    assert document.text == "One\n\nOld boilers.\n\nTwo\n\nNew boilers.\n"
    assert headings(document) == [(1, "One"), (1, "Two")]


# What cannot be read ------------------------------------------------------------------------------

BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><package>&b;</package>'


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"", "no text"),
        ("a.md", b" \n\n", "no text"),
        ("a.bin", b"\0\1\2" * 100, "not text"),
        ("a.txt", bytes(range(1, 32)) * 10, "not text"),
        ("a.pdf", b"%PDF-1.4 nothing", "PDF"),
        ("a.pdf", minimal_pdf("x")[:200], "PDF"),
        ("a.docx", b"no archive", "damaged archive"),
        ("a.docx", epub(), "'word/document.xml' is missing"),
        ("a.epub", word_file(), "'META-INF/container.xml' is missing"),
        ("a.epub", epub(**{"OEBPS/book.opf": "<package"}), "damaged"),
        ("a.epub", epub(**{"OEBPS/book.opf": BOMB}), "entities"),
        ("a.epub", epub(**{"META-INF/container.xml": "<a/>"}), "no EPUB"),
        ("a.json", b"{", "no JSON"),
        ("a.json", b"[" * 100_000, "no JSON"),
        ("a.csv", b"\n\n", "no text"),
    ],
)
def test_what_cannot_be_read_says_why(name, data, reason):
    with pytest.raises(FileFormatError, match=reason):
        parse_document(data, name)


def test_an_archive_that_would_unpack_to_too_much_is_refused_before_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(rich_documents, "MAX_UNPACKED_BYTES", 1 << 20)
    bomb = epub(**{"OEBPS/text/one.xhtml": "a" * (8 << 20)})
    assert len(bomb) < 20_000
    for name in ("a.epub", "a.docx"):
        with pytest.raises(FileFormatError, match="would unpack to 8 MB"):
            parse_document(bomb, name)


def test_an_archive_that_lies_about_its_size_is_refused():
    lie = bytearray(epub(**{"OEBPS/text/one.xhtml": "a" * 100_000}))
    at = lie.index(b"PK\1\2", lie.index(b"PK\1\2") + 1)
    while lie[at + 46 : at + 46 + 20] != b"OEBPS/text/one.xhtml":
        at = lie.index(b"PK\1\2", at + 1)
    lie[at + 24 : at + 28] = (10).to_bytes(4, "little")  # the uncompressed size in the directory
    with pytest.raises(FileFormatError, match="one.xhtml. is damaged"):
        parse_document(bytes(lie), "a.epub")


def test_a_file_that_is_too_large_is_not_even_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 2 << 20)
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(3 << 20)
    with pytest.raises(FileFormatError, match="3 MB, and the limit is 2 MB"):
        read_document(tmp_path / "a.txt")


def test_text_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT", 100)
    monkeypatch.setattr(rich_documents, "MAX_DOCUMENT", 100)
    for name, data in (("a.txt", b"word " * 30), ("a.html", b"<p>word" * 30)):
        with pytest.raises(FileFormatError, match="more than 100 characters"):
            parse_document(data, name)


def test_what_is_not_there_or_no_file_or_locked_says_so(tmp_path):
    with pytest.raises(NotFound):
        read_document(tmp_path / "a.txt")
    with pytest.raises(FileFormatError, match="not a file"):
        read_document(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(FileFormatError, match="not a file"):
        read_document(tmp_path / "pipe.txt")


def small_word_file() -> bytes:
    """Without the styles that python-docx brings: they take a second to read."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(word_file())) as whole, zipfile.ZipFile(out, "w") as small:
        for name in whole.namelist():
            if name != "word/styles.xml":
                small.writestr(name, whole.read(name))
    return out.getvalue()


@pytest.mark.parametrize("make", [small_word_file, epub, lambda: minimal_pdf("The boiler.", "The knob.")])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(make):
    whole = make()
    name = {b"PK": "a.epub" if b"mimetype" in whole else "a.docx", b"%P": "a.pdf"}[whole[:2]]

    @given(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=8), st.booleans())
    @settings(max_examples=60, deadline=None)
    def damage(at, junk, is_cut):
        data = whole[:at] if is_cut else whole[:at] + junk + whole[at + len(junk) :]
        try:
            parse_document(data, name)
        except FileFormatError as error:
            assert str(error)

    damage()


@pytest.mark.parametrize("make", [small_word_file, epub])
def test_a_part_that_is_damaged_before_it_was_packed_is_read_or_refused_too(make):
    with zipfile.ZipFile(io.BytesIO(make())) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    names = sorted(name for name in parts if name.endswith(("xml", "opf", "rels", "xhtml")))
    kind = "a.epub" if "mimetype" in parts else "a.docx"

    @given(st.sampled_from(names), st.integers(0, 3000), st.binary(min_size=1, max_size=8), st.booleans())
    @settings(max_examples=60, deadline=None)
    def damage(name, at, junk, is_cut):
        part = parts[name]
        changed = part[:at] if is_cut else part[:at] + junk + part[at + len(junk) :]
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for each, data in parts.items():
                archive.writestr(each, changed if each == name else data)
        try:
            parse_document(out.getvalue(), kind)
        except FileFormatError as error:
            assert str(error)

    damage()


def test_a_folder_gives_its_readable_files_and_leaves_the_rest(tmp_path):
    for name in ("b.md", "a/c.TXT", "a/d.jpg", ".git/e.md", "a/.hidden.md", "node_modules/x.js", "f.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.md").symlink_to("/etc/hostname")
    found = [str(path.relative_to(tmp_path)) for path in find_files(tmp_path)]
    assert found == ["b.md", "f.py", "a/c.TXT"]
