"""Bases by name, and downloads from a hub that behaves badly: a real HTTP server on this machine."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from gguf import GGUFReader
from tiny import write_tiny, write_tiny_adapter

from nightschool import download, hub
from nightschool.errors import DownloadError, FileFormatError, NameTaken, NotFound
from nightschool.events import Notice, Progress

REPO = "someone/tiny-GGUF"


@dataclass
class Hub:
    """What the server has and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)  # path -> a checksum that is not its own
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    cut_after: int | None = None  # bytes of a body before the connection breaks
    cuts: int = 0  # how many bodies are cut
    ignore_range: bool = False
    redirect_to: str = ""
    status: int = 200
    page_size: int = 1000
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.path, dict(self.headers)))
        if self.hub.status != 200:
            self.answer(self.hub.status, b"{}")
        elif path == f"/api/models/{REPO}/tree/main":
            self.list_files()
        elif path.startswith(f"/{REPO}/resolve/main/") and self.hub.redirect_to:
            self.answer(302, b"", Location=self.hub.redirect_to)
        else:
            self.send_file(path.removeprefix(f"/{REPO}/resolve/main/").removeprefix("/cdn/"))

    def list_files(self):
        start = int(urlsplit(self.path).query.partition("from=")[2] or 0)
        entries = [
            {"type": "file", "path": path, "size": len(raw), "oid": "0" * 40, "lfs": self.lfs(path, raw)}
            for path, raw in self.hub.files.items()
        ]
        page, rest = entries[start : start + self.hub.page_size], entries[start + self.hub.page_size :]
        more = f"{self.hub.address}/api/models/{REPO}/tree/main?from={start + self.hub.page_size}"
        headers = {"Link": f'<{more}>; rel="next"'} if rest else {}
        self.answer(200, json.dumps(page).encode(), **headers)

    def lfs(self, path, raw):
        checksum = self.hub.claims.get(path, hashlib.sha256(raw).hexdigest())
        return {"oid": checksum, "size": len(raw), "pointerSize": 130}

    def send_file(self, name):
        if name not in self.hub.files:
            return self.answer(404, b"")
        raw, start = self.hub.files[name], 0
        if (wanted := self.headers.get("Range")) and not self.hub.ignore_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(raw) - start))
        self.end_headers()
        if self.hub.cuts:
            self.hub.cuts -= 1
            self.wfile.write(raw[start : start + self.hub.cut_after])
            self.connection.close()
            return None
        return self.wfile.write(raw[start:])

    def answer(self, status, body, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bytes of a small model that is worth several chunks."""
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf", "llama", layers=4, ffn=640).read_bytes()


@pytest.fixture
def remote(model, monkeypatch):
    """A hub with one repository; HF_ENDPOINT points to it."""
    state = Hub(files={"tiny-Q4_K_M.gguf": model, "README.md": b"hello"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    state.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", state.address)
    monkeypatch.setattr(download, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def parts(home: Path) -> list[Path]:
    return list((home / "models").glob(".*.part"))


# Names --------------------------------------------------------------------------------------------


def test_a_registered_file_is_found_by_name_and_stays_where_it_is(tmp_path, home):
    path = write_tiny(tmp_path / "my model+1.gguf", "qwen3", "Q8_0")
    base = hub.register(path)
    assert (base.name, base.path) == ("my-model-1", path)
    assert hub.find_base("my-model-1") == base
    assert [entry.name for entry in hub.list_bases() if entry.name != hub.SHIPPED] == ["my-model-1"]
    assert not list(home.rglob("*.gguf"))


def test_a_path_is_a_base_too(tmp_path, monkeypatch):
    path = write_tiny(tmp_path / "m.gguf", "llama")
    assert hub.find_base(str(path)).path == path
    monkeypatch.chdir(tmp_path)
    assert hub.find_base("m.gguf").path == path


def test_an_unknown_name_brings_the_close_ones_or_all(tmp_path):
    for name in ("smollm-360m", "qwen3-0.6b"):
        hub.register(write_tiny(tmp_path / "m.gguf", "llama"), name)
    with pytest.raises(NotFound, match=r"no base 'smollm360m'. Did you mean smollm-360m\?"):
        hub.find_base("smollm360m")
    with pytest.raises(NotFound, match="Here are .*qwen3-0.6b, smollm-360m. `nightschool pull` fetches"):
        hub.find_base("zzz")


def test_a_file_that_has_gone_is_named(tmp_path):
    path = write_tiny(tmp_path / "m.gguf", "llama")
    hub.register(path, "gone")
    path.unlink()
    with pytest.raises(NotFound, match="'gone' was at .*, and is there no longer"):
        hub.find_base("gone")


def test_a_name_belongs_to_one_file(tmp_path):
    one, two = (write_tiny(tmp_path / f"{name}.gguf", "llama") for name in "ab")
    hub.register(one, "work")
    hub.register(one, "work")
    for name in ("work", hub.SHIPPED):
        with pytest.raises(NameTaken, match=f"{name!r} belongs to"):
            hub.register(two, name)
    with pytest.raises(NameTaken, match="cannot be a name"):
        hub.register(two, "+++")


def test_only_models_get_a_name(tmp_path):
    base = write_tiny(tmp_path / "m.gguf", "llama")
    adapter = write_tiny_adapter(tmp_path / "a.gguf", base)
    with pytest.raises(FileFormatError, match="is a GGUF adapter, not a model"):
        hub.register(adapter)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileFormatError):
        hub.register(tmp_path / "x.gguf")


def test_a_damaged_record_is_named(home):
    (home / "models").mkdir()
    (home / "models" / "x.json").write_text("[")
    with pytest.raises(FileFormatError, match=r"x\.json' is damaged"):
        hub.list_bases()


def test_a_description_agrees_with_the_gguf_package(tmp_path):
    path = write_tiny(tmp_path / "m.gguf", "gemma3", "Q4_K", types={"token_embd.weight": "Q6_K"})
    info = hub.describe(hub.register(path, "g"))
    reader = GGUFReader(path)
    assert info.parameters == sum(tensor.n_elements for tensor in reader.tensors)
    assert (info.architecture, info.type, info.context) == ("gemma3", "Q4_K", 512)
    assert info.size_bytes == path.stat().st_size


def test_the_identity_of_a_base_is_remembered_and_follows_the_file(tmp_path, home):
    path = write_tiny(tmp_path / "m.gguf", "llama", layers=1)
    first = hub.base_hash(path)
    memory = json.loads((home / "base_hashes.json").read_text())
    assert list(memory.values()) == [first] == [hub.base_hash(path)]
    (home / "base_hashes.json").write_text(json.dumps(dict.fromkeys(memory, "remembered")))
    assert hub.base_hash(path) == "remembered"
    write_tiny(path, "llama", layers=1, seed=1)
    assert hub.base_hash(path) not in (first, "remembered")
    (home / "base_hashes.json").write_text("nonsense")
    assert hub.base_hash(write_tiny(path, "llama", layers=1)) == first


# Finding on a hub ---------------------------------------------------------------------------------


def test_a_preferred_quantisation_is_chosen_and_others_by_name(remote, model):
    remote.files |= {name: model for name in ("tiny-IQ4_XS.gguf", "tiny-Q8_0.gguf", "sub dir/tiny-f16.gguf")}
    remote.files |= {"mmproj-tiny-Q4_K_M.gguf": model}
    assert download.look_up(REPO).path == "tiny-Q4_K_M.gguf"
    assert download.look_up(f"{REPO}:q8_0").path == "tiny-Q8_0.gguf"
    assert download.look_up(f"{REPO}:IQ4_XS").path == "tiny-IQ4_XS.gguf"
    assert download.look_up(f"{REPO}/sub dir/tiny-f16.gguf").path == "sub dir/tiny-f16.gguf"
    pasted = f"{remote.address}/{REPO}/blob/main/tiny-Q8_0.gguf"
    assert download.look_up(pasted).path == "tiny-Q8_0.gguf"
    with pytest.raises(NotFound, match=r"(?s)has no Q2_K; name one of .*tiny-IQ4_XS.gguf  \(2.3 MB\)"):
        download.look_up(f"{REPO}:Q2_K")


def test_lists_of_several_pages_are_read_to_the_end(remote, model):
    remote.files = {f"other-{i}.txt": b"" for i in range(9)} | {"tiny-Q8_0.gguf": model}
    remote.page_size = 3
    assert download.look_up(REPO).path == "tiny-Q8_0.gguf"


def test_two_files_of_one_quantisation_are_listed(remote, model):
    remote.files["other-Q4_K_M.gguf"] = model
    with pytest.raises(
        NotFound, match=r"(?s)Several files .* are Q4_K_M.*other-Q4_K_M.*tiny-Q4_K_M|tiny.*other"
    ):
        download.look_up(REPO)


def test_split_models_and_repositories_without_gguf_are_explained(remote, model):
    remote.files = {f"big-Q4_K_M-0000{i}-of-00002.gguf": model for i in (1, 2)}
    with pytest.raises(NotFound, match="one part of a split model"):
        download.look_up(REPO)
    remote.files = {"model.safetensors": b"x"}
    with pytest.raises(NotFound, match="has no GGUF file"):
        download.look_up(REPO)


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [(404, NotFound, "has no repository"), (401, NotFound, "private"), (500, DownloadError, "status 500")],
)
def test_what_the_hub_refuses_is_said(remote, status, error, reason):
    remote.status = status
    with pytest.raises(error, match=reason):
        download.look_up(REPO)


@pytest.mark.parametrize("reference", ["name", "a/b/../c.gguf", "a/b/c/d", "../x.gguf", "a/b:c:d"])
def test_what_is_no_reference_is_not_asked_for(remote, reference):
    with pytest.raises(NotFound, match="is no file on this machine"):
        download.look_up(reference)
    assert not remote.requests


def test_a_hub_that_is_not_there_or_not_a_hub_is_said(remote, monkeypatch):
    remote.files = {}
    monkeypatch.setattr(Handler, "list_files", lambda self: self.answer(200, b"<html>"))
    with pytest.raises(DownloadError, match="does not answer like a model hub"):
        download.look_up(REPO)
    with pytest.raises(DownloadError, match="http://127.0.0.1:9 cannot be reached"):
        download.look_up(REPO, hub="http://127.0.0.1:9")


# Pulling ------------------------------------------------------------------------------------------


def test_a_pulled_model_is_whole_named_and_recorded(remote, model, home):
    events = list(hub.pull(download.look_up(REPO)))
    steps = [event for event in events if isinstance(event, Progress)]
    assert steps[-1].done == steps[-1].total == len(model) and len(steps) > 3
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    base = hub.find_base("tiny-Q4_K_M")
    assert base.path.read_bytes() == model and base.path.parent == home / "models"
    record = json.loads((home / "models" / "tiny-Q4_K_M.json").read_text())
    assert record == {
        "path": "tiny-Q4_K_M.gguf",
        "source": f"{remote.address}/{REPO}/tiny-Q4_K_M.gguf",
        "size_bytes": len(model),
        "sha256": hashlib.sha256(model).hexdigest(),
    }
    assert not parts(home)


def test_pulling_again_fetches_nothing(remote):
    file = download.look_up(REPO)
    list(hub.pull(file))
    remote.requests.clear()
    assert [type(event) for event in hub.pull(file)] == [Notice] and not remote.requests


def test_a_name_that_is_another_file_is_not_written_over(remote, tmp_path, home):
    hub.register(write_tiny(tmp_path / "m.gguf", "llama"), "tiny-Q4_K_M")
    with pytest.raises(NameTaken, match="choose another with --name"):
        list(hub.pull(download.look_up(REPO)))
    list(hub.pull(download.look_up(REPO), name="other"))
    with pytest.raises(NameTaken):
        (home / "models" / "byhand.gguf").write_bytes(b"mine")
        list(hub.pull(download.look_up(REPO), name="byhand"))
    assert (home / "models" / "byhand.gguf").read_bytes() == b"mine"


def test_a_connection_that_breaks_now_and_then_is_taken_up_again(remote, model):
    remote.cut_after, remote.cuts = 100_000, 3
    list(hub.pull(download.look_up(REPO)))
    assert hub.find_base("tiny-Q4_K_M").path.read_bytes() == model
    starts = [headers["Range"] for path, headers in remote.requests if "Range" in headers]
    assert starts == ["bytes=0-", "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_a_download_that_was_stopped_goes_on_where_it_was(remote, model, home):
    file = download.look_up(REPO)
    events = hub.pull(file)
    while next(events).done < 200_000:
        pass
    events.close()  # Ctrl-C
    (part,) = parts(home)
    size = part.stat().st_size
    assert 200_000 <= size < len(model) and not list((home / "models").glob("*.gguf"))
    remote.requests.clear()
    list(hub.pull(file))
    assert [headers["Range"] for _, headers in remote.requests] == [f"bytes={size}-"]
    assert hub.find_base("tiny-Q4_K_M").path.read_bytes() == model


def test_a_server_without_ranges_is_read_from_its_beginning(remote, model):
    remote.cut_after, remote.cuts, remote.ignore_range = 300_000, 1, True
    list(hub.pull(download.look_up(REPO)))
    assert hub.find_base("tiny-Q4_K_M").path.read_bytes() == model


def test_a_connection_that_never_holds_keeps_what_came_and_says_how_to_go_on(remote, home):
    remote.cut_after, remote.cuts = 0, 99
    file = download.look_up(REPO)
    with pytest.raises(DownloadError, match="broke after 0 B of .* Run the same command to go on"):
        list(hub.pull(file))
    assert sum("Range" in headers for _, headers in remote.requests) == download.TRIES


def test_wrong_bytes_are_thrown_away(remote, model, home):
    remote.claims["tiny-Q4_K_M.gguf"] = "0" * 64
    with pytest.raises(DownloadError, match="not those that the hub promised"):
        list(hub.pull(download.look_up(REPO)))
    assert not parts(home) and not list((home / "models").iterdir())


def test_a_damaged_part_is_found_out(remote, model, home):
    file = download.look_up(REPO)
    (home / "models").mkdir()
    (home / "models" / f".{file.sha256[:16]}.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="thrown away"):
        list(hub.pull(file))
    list(hub.pull(file))
    assert hub.find_base("tiny-Q4_K_M").path.read_bytes() == model


def test_a_file_that_is_no_model_gets_no_name(remote, home):
    remote.files["tiny-Q4_K_M.gguf"] = b"GGUF" + bytes(1000)
    with pytest.raises(FileFormatError):
        list(hub.pull(download.look_up(REPO)))
    assert not list((home / "models").iterdir())


def test_a_full_disk_is_seen_before_the_download(remote, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    file = download.look_up(REPO)
    remote.requests.clear()
    with pytest.raises(DownloadError, match="Make room"):
        list(hub.pull(file))
    assert not remote.requests


def test_a_redirect_on_this_machine_is_followed(remote, model):
    remote.redirect_to = f"{remote.address}/cdn/tiny-Q4_K_M.gguf"
    list(hub.pull(download.look_up(REPO)))
    assert hub.find_base("tiny-Q4_K_M").path.read_bytes() == model


@pytest.mark.parametrize("target", ["http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_a_redirect_to_an_open_connection_is_refused(remote, target):
    remote.redirect_to = target
    with pytest.raises(DownloadError, match="not an https address"):
        list(hub.pull(download.look_up(REPO)))


def test_an_https_hub_may_not_lead_to_this_machine():
    with pytest.raises(DownloadError, match="not an https address"):
        download._check_safe("http://127.0.0.1/x", before="https://hub.example")
    with pytest.raises(DownloadError, match="not an https address"):
        download.look_up(REPO, hub="http://hub.example")


def test_redirects_end(remote):
    remote.redirect_to = f"{remote.address}/{REPO}/resolve/main/tiny-Q4_K_M.gguf"
    with pytest.raises(DownloadError, match="without end"):
        list(hub.pull(download.look_up(REPO)))


def test_the_token_goes_to_the_hub_and_not_to_where_it_leads(remote, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    other = remote.address.replace("127.0.0.1", "localhost")
    assert download._origin(other) != download._origin(remote.address)
    with download._client() as client:
        download._get(client, remote.address, hub=remote.address)
        download._get(client, remote.address, hub=other)
    sent = [headers.get("Authorization") for _, headers in remote.requests]
    assert sent == ["Bearer hf_secret", None]
