"""Files from a model hub: find them, download them, check them. Nothing else speaks to another machine.

It follows the Hugging Face Hub's API (huggingface.co/docs/hub/api): `/api/models/<repo>/tree/main` lists
files with the SHA-256 of their contents, `/<repo>/resolve/main/<file>` redirects to the bytes.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

import httpx

from nightschool import __version__
from nightschool.errors import DownloadError, NotFound
from nightschool.events import Event, Progress

PUBLIC_HUB = "https://huggingface.co"
PREFERRED = ("Q4_K_M", "Q8_0")  # the two that llama.cpp's portable builds run well
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0  # without a byte
REDIRECTS = 8
TRIES = 5  # in a row, without a byte between them
SPARE_BYTES = 100_000_000  # of disk to leave free

# owner/name, then nothing, /path/file.gguf or :quantisation
_REFERENCE = re.compile(r"([\w.-]+/[\w.-]+?)(?:/([\w./ +@-]+\.gguf)|:([\w.-]+))?", re.ASCII | re.IGNORECASE)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
_MODEL = re.compile(r"(?!.*(?:mmproj|imatrix)).*\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """A GGUF file on a hub: what it will take, and how to know that it has come whole."""

    hub: str
    repo: str
    path: str
    size_bytes: int
    sha256: str

    @property
    def url(self) -> str:
        return f"{self.hub}/{self.repo}/resolve/main/{quote(self.path)}"


# Finding ------------------------------------------------------------------------------------------


def look_up(reference: str, *, hub: str | None = None) -> RemoteFile:
    """Find `owner/name`, `owner/name:Q4_K_M` or `owner/name/file.gguf` on a hub; nothing is downloaded yet.

    The hub is `hub`, $HF_ENDPOINT or the public one; $HF_TOKEN is sent to it and to nobody else.
    Raises NotFound when there is no such thing, DownloadError when the hub cannot be asked.
    """
    hub = (hub or os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")
    _check_safe(hub, before=hub)
    match = _REFERENCE.fullmatch(_without_address(reference, hub))
    if not match or ".." in reference:
        raise NotFound(
            f"{reference!r} is no file on this machine, and not like owner/name, owner/name:Q4_K_M or "
            "owner/name/file.gguf on a hub."
        )
    repo, path, quant = match.groups()
    files = _list_files(hub, repo)
    chosen = _named(repo, files, path=path) if path else _of_quant(repo, files, quant=quant)
    if _SPLIT.search(Path(chosen.path).stem):
        raise NotFound(
            f"{chosen.path!r} is one part of a split model, and only models in one file can be used. Choose "
            "a smaller quantisation, or join the parts with llama.cpp's gguf-split and pull the result."
        )
    return chosen


def _without_address(reference: str, hub: str) -> str:
    """People paste the address from their browser."""
    return re.sub(r"/(blob|resolve)/main/", "/", reference.removeprefix(hub + "/"))


def _list_files(hub: str, repo: str) -> list[RemoteFile]:
    """Every GGUF of a repository that could be a model."""
    url: str | None = f"{hub}/api/models/{repo}/tree/main?recursive=true"
    entries: list[dict[str, Any]] = []
    try:
        with _client() as client:
            while url:
                response = _get(client, url, hub=hub)
                _raise_for(response, f"repository {repo!r}")
                entries += response.json()
                url = response.links.get("next", {}).get("url")
        return [
            RemoteFile(hub, repo, entry["path"], int(entry["size"]), _checked_sha256(entry["lfs"]["oid"]))
            for entry in entries
            if "lfs" in entry and _MODEL.fullmatch(entry["path"])
        ]
    except httpx.TransportError as error:
        raise DownloadError(f"{hub} cannot be reached ({error}). Is this machine online?") from error
    except (ValueError, TypeError, LookupError) as error:
        raise DownloadError(f"{hub} does not answer like a model hub. Check its address.") from error


def _checked_sha256(oid: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", oid):
        raise ValueError(oid)
    return oid


def _named(repo: str, files: list[RemoteFile], *, path: str) -> RemoteFile:
    for file in files:
        if file.path == path:
            return file
    _raise_missing(repo, repr(path), files)


def _of_quant(repo: str, files: list[RemoteFile], *, quant: str | None) -> RemoteFile:
    """The one file of the wanted quantisation; of a preferred one when none is named; else the only file."""
    for wanted in [quant] if quant else PREFERRED:
        fitting = [file for file in files if _is_quant(file.path, wanted)]
        if len(fitting) == 1 or (fitting and all(_SPLIT.search(Path(file.path).stem) for file in fitting)):
            return fitting[0]
        if fitting:
            raise NotFound(f"Several files of {repo!r} are {wanted}; name one of them:\n{_listed(fitting)}")
    if not quant and len(files) == 1:
        return files[0]
    _raise_missing(repo, quant or " or ".join(PREFERRED), files)


def _is_quant(path: str, quant: str) -> bool:
    stem = Path(path).stem.upper()
    return bool(re.search(rf"(?<![A-Z0-9]){re.escape(quant.upper())}(?![A-Z0-9_])", stem))


def _raise_missing(repo: str, wanted: str, files: list[RemoteFile]) -> NoReturn:
    if not files:
        raise NotFound(f"The repository {repo!r} has no GGUF file. Look for one whose name ends in -GGUF.")
    raise NotFound(f"{repo!r} has no {wanted}; name one of these files:\n{_listed(files)}")


def _listed(files: list[RemoteFile]) -> str:
    return "\n".join(f"  {file.repo}/{file.path}  ({size_text(file.size_bytes)})" for file in files)


def size_text(size_bytes: float) -> str:
    """A size for people: 640 kB, 3.1 MB, 4.92 GB."""
    for unit, digits in (("B", 0), ("kB", 0), ("MB", 1)):
        if size_bytes < 1000:
            return f"{size_bytes:.{digits}f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


# Downloading --------------------------------------------------------------------------------------


def check_space(file: RemoteFile, part: Path) -> None:
    """Raises DownloadError when the rest of the file would fill the disk."""
    folder = next(folder for folder in part.parents if folder.exists())
    needed = file.size_bytes - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise DownloadError(
            f"The download needs {size_text(needed)}, and {size_text(free)} are left on the disk of "
            f"{str(folder)!r}. Make room, or let NIGHTSCHOOL_HOME name a folder on another disk."
        )


def fetch(file: RemoteFile, part: Path) -> Iterator[Event]:
    """Fill `part` until it is the whole file, going on after the bytes it has.

    Raises DownloadError when no more bytes come (they are kept) or they are the wrong ones (they are not).
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    whole = hashlib.sha256()
    with part.open("a+b") as out:
        if out.tell() > file.size_bytes:
            out.truncate(0)
        yield from _hash_what_is_here(file, out, whole)
        yield from _fill(file, out, whole)
        out.flush()
        os.fsync(out.fileno())
    if whole.hexdigest() != file.sha256:
        part.unlink()
        raise DownloadError(
            f"The bytes of {file.path!r} are not those that the hub promised, so they were thrown away. Try "
            "again; if that does not help, the file on the hub is damaged."
        )


def _hash_what_is_here(file: RemoteFile, out: IO[bytes], whole: "hashlib._Hash") -> Iterator[Event]:
    out.seek(0)
    while piece := out.read(CHUNK_BYTES):
        whole.update(piece)
        yield Progress("checking what is here", out.tell(), file.size_bytes, "bytes")


def _fill(file: RemoteFile, out: IO[bytes], whole: "hashlib._Hash") -> Iterator[Event]:
    tries = 0
    while (start := out.tell()) < file.size_bytes:
        reason = "the server closed it"
        try:
            for piece in _bytes_from(file, start):
                out.write(piece)
                whole.update(piece)
                yield Progress(f"pulling {Path(file.path).name}", out.tell(), file.size_bytes, "bytes")
        except httpx.TransportError as error:
            reason = str(error)
        tries = 0 if out.tell() > start else tries + 1
        if tries == TRIES:
            raise DownloadError(
                f"The connection broke after {size_text(start)} of {size_text(file.size_bytes)} ({reason}). "
                "Run the same command to go on from there."
            )
        if tries:
            time.sleep(0.5 * 2**tries)


def _bytes_from(file: RemoteFile, start: int) -> Iterator[bytes]:
    """The bytes from `start` to the promised end, also of a server that ignores the range and starts at 0."""
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    left = file.size_bytes - start
    with _client() as client:
        response = _get(client, file.url, hub=file.hub, headers=headers)
        try:
            _raise_for(response, f"file {file.path!r} in {file.repo!r}")
            known = 0 if response.status_code == httpx.codes.PARTIAL_CONTENT else start
            for piece in response.iter_raw():
                fresh = piece[known:][:left]
                known, left = max(0, known - len(piece)), left - len(fresh)
                if fresh:
                    yield fresh
                if not left:
                    return
        finally:
            response.close()


# Asking -------------------------------------------------------------------------------------------


def _client() -> httpx.Client:
    return httpx.Client(timeout=TIMEOUT_S, headers={"User-Agent": f"nightschool/{__version__}"})


def _get(
    client: httpx.Client, url: str, *, hub: str, headers: dict[str, str] | None = None
) -> httpx.Response:
    """Follow redirects to safe places; the token goes to the hub alone. A stream where headers are given."""
    for _ in range(REDIRECTS):
        request = client.build_request("GET", url, headers=headers)
        token = os.environ.get("HF_TOKEN")
        if token and _origin(url) == _origin(hub):
            request.headers["Authorization"] = f"Bearer {token}"
        response = client.send(request, stream=headers is not None)
        if not response.has_redirect_location:
            return response
        response.close()
        target = urljoin(url, response.headers["Location"])
        _check_safe(target, before=url)
        url = target
    raise DownloadError(f"{_host(hub)} redirects without end.")


def _check_safe(url: str, *, before: str) -> None:
    """https anywhere; http only to this machine, and only when the asking began there."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and parts.hostname in LOOPBACK and parts.hostname == _host(before):
        return
    raise DownloadError(f"{_host(before)!r} leads to {url!r}, which is not an https address.")


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _raise_for(response: httpx.Response, what: str) -> None:
    host, status = response.url.host, response.status_code
    if response.is_success:
        return
    if response.headers.get("X-Error-Code") == "GatedRepo":
        raise DownloadError(f"The {what} asks for consent: accept its terms at {host} and set HF_TOKEN.")
    if status in (401, 403):
        raise NotFound(f"{host} shows no {what}: the name is wrong, or it is private and needs HF_TOKEN.")
    if status == 404:
        raise NotFound(f"{host} has no {what}. Check the spelling; capitals count.")
    raise DownloadError(f"{host} answers with status {status} when asked for the {what}. Try again later.")
