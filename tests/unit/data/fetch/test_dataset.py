"""Archives of datasets from a real HTTP server: whole, broken, resumed, wrong, hostile; what stays on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from distill_engine.data.errors import DataError
from distill_engine.data.fetch import download as download_module
from distill_engine.data.fetch import unpack as unpack_module
from distill_engine.data.fetch.archives import ARCHIVES, BASE_ADDRESS, Archive, archives_of
from distill_engine.data.fetch.dataset import MARKER, Origin, fetch
from distill_engine.data.fetch.download import FetchError
from distill_engine.data.fetch.unpack import UnpackError

ROOT = Path(__file__).parents[4]
NAMES = ("train.json", "valid.json", "test.json")


def content(name: str) -> bytes:
    """Bytes that compression cannot shrink, so that archives have a size worth breaking off."""
    return random.Random(name).randbytes(100_000)


FILES = {f"./{name}": content(name) for name in NAMES} | {"./notes/readme.txt": b"hello\n"}


def packed(files: dict[str, bytes] | None = None, *members: tarfile.TarInfo) -> bytes:
    """A .tar.gz of plain files and of further members without content; the same bytes every time."""
    box = io.BytesIO()
    with tarfile.open(fileobj=box, mode="w") as tar:
        for name, data in (FILES if files is None else files).items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
        for member in members:
            tar.addfile(member, io.BytesIO(b"\0" * member.size))
    return gzip.compress(box.getvalue(), mtime=0)


WHOLE = packed()


def archive_of(data: bytes = WHOLE, **changes) -> Archive:
    known = ARCHIVES["blended_skill_talk"]
    return replace(known, sha256=hashlib.sha256(data).hexdigest(), **changes)


@dataclass
class Served:
    """What a server answers with, and what it was asked for."""

    data: bytes = WHOLE
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes sent before each connection is cut
    statuses: list[int] = field(default_factory=list)  # answers before the real one
    wrong_start: bool = False
    asked: list[str] = field(default_factory=list)  # Range header of every request
    url: str = ""


@pytest.fixture
def served(monkeypatch) -> Iterator[Served]:
    what = Served()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked = self.headers.get("Range", "")
            what.asked.append(asked)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/a.tgz")
                self.end_headers()
                return
            if what.statuses:
                self.send_error(what.statuses.pop(0))
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and what.ranges else 0
            if start >= len(what.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(what.data)}")
                self.end_headers()
                return
            body = what.data[start:]
            self.send_response(206 if start else 200)
            if start:
                begins = 0 if what.wrong_start else start
                self.send_header("Content-Range", f"bytes {begins}-{len(what.data) - 1}/{len(what.data)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: what.break_after.pop(0)] if what.break_after else body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    what.url = f"http://127.0.0.1:{server.server_port}/a.tgz"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield what
    server.shutdown()
    server.server_close()


def get(served: Served, root: Path, archive: Archive | None = None, url: str | None = None, **options):
    archive = archive or archive_of(served.data)
    return fetch(archive, root, Origin(url or served.url, archive.sha256), first_pause_s=0.0, **options)


def refusal(served: Served, root: Path, archive: Archive | None = None, **options) -> str:
    """The message; nothing of the dataset may be there afterwards."""
    with pytest.raises((FetchError, UnpackError)) as caught:
        get(served, root, archive, **options)
    assert not (root / "blended_skill_talk").exists()
    assert not list(root.rglob("unpacked"))
    return str(caught.value)


def is_whole(folder: Path) -> bool:
    return all((folder / name).read_bytes() == data for name, data in FILES.items())


# -- The way it should be ----------------------------------------------------------------------------------------


def test_a_task_is_fetched_checked_and_unpacked(served, tmp_path):
    seen, said = [], []
    done = get(served, tmp_path, progress=lambda *values: seen.append(values), say=said.append)
    assert done.folder == tmp_path / "blended_skill_talk" and not done.was_there
    assert done.files == ("notes/readme.txt", "test.json", "train.json", "valid.json")
    assert is_whole(done.folder)
    assert seen[0] == (0, len(WHOLE)) and seen[-1] == (len(WHOLE), len(WHOLE))
    assert said == [f"downloading {served.url}", "checking", "unpacking"]
    assert not list((tmp_path / ".fetch").glob("blended_skill_talk/*"))
    assert not (done.folder / ".built").exists()  # ParlAI wants more in this folder than the archive holds


def test_what_is_there_is_not_fetched_again(served, tmp_path):
    get(served, tmp_path)
    again = get(served, tmp_path)
    assert again.was_there and "train.json" in again.files
    assert len(served.asked) == 1
    get(served, tmp_path, replace=True)
    assert len(served.asked) == 2


def test_a_folder_that_parlai_has_built_is_complete(served, tmp_path):
    folder = tmp_path / "blended_skill_talk"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(b"[]")
    (folder / ".built").write_text("2020-05-01 10:00:00\nv1.5")
    assert get(served, tmp_path).was_there
    (folder / ".built").write_text("2020-05-01 10:00:00\nv1.4")  # an older release
    with pytest.raises(FetchError, match="different from the archive's"):
        get(served, tmp_path)


def test_the_marker_lets_parlai_take_the_folder(served, tmp_path):
    done = get(served, tmp_path, archive_of(marks_built=True))
    assert (done.folder / ".built").read_text().splitlines()[1] == "v1.5"
    (done.folder / MARKER).unlink()
    assert get(served, tmp_path).was_there


def test_a_file_that_was_lost_is_brought_back(served, tmp_path):
    folder = get(served, tmp_path).folder
    (folder / "valid.json").unlink()
    assert not get(served, tmp_path).was_there
    assert is_whole(folder)


def test_a_redirect_is_followed(served, tmp_path):
    assert is_whole(get(served, tmp_path, url=served.url.replace("a.tgz", "moved")).folder)


def test_a_copy_on_this_machine(served, tmp_path):
    copy = tmp_path / "copy.tgz"
    copy.write_bytes(WHOLE)
    done = fetch(archive_of(), tmp_path / "data", Origin("", archive_of().sha256, copy))
    assert is_whole(done.folder) and copy.read_bytes() == WHOLE and served.asked == []


# -- Broken transfers --------------------------------------------------------------------------------------------


def test_a_broken_transfer_goes_on_where_it_stopped(served, tmp_path):
    served.break_after = [90_000, 120_000]
    assert is_whole(get(served, tmp_path).folder)
    assert served.asked[0] == ""
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in served.asked[1:]]
    assert len(starts) == 2 and 0 < starts[0] <= 90_000 < starts[1] <= 210_000


def test_the_next_command_goes_on_too(served, tmp_path):
    served.break_after = [150_000] + [0] * download_module.ATTEMPTS
    message = refusal(served, tmp_path)
    assert "did not arrive" in message and "are kept: the same command goes on from there" in message
    served.asked.clear()
    assert is_whole(get(served, tmp_path).folder)
    assert served.asked[0].startswith("bytes=") and len(served.asked) == 1


def test_a_server_without_ranges_starts_over(served, tmp_path):
    served.ranges, served.break_after = False, [150_000]
    assert is_whole(get(served, tmp_path).folder)
    assert len(served.asked) == 2


def test_a_server_that_sends_another_part_is_not_believed(served, tmp_path):
    served.wrong_start, served.break_after = True, [150_000]
    assert is_whole(get(served, tmp_path).folder)
    assert served.asked[-1] == ""  # all of it


def test_a_server_that_is_busy_for_a_moment(served, tmp_path):
    served.statuses = [503, 429]
    assert is_whole(get(served, tmp_path).folder)


def left_before(root: Path, data: bytes) -> None:
    work = root / ".fetch" / "blended_skill_talk"
    work.mkdir(parents=True)
    (work / f"{ARCHIVES['blended_skill_talk'].name}.part").write_bytes(data)


@pytest.mark.parametrize(
    "left",
    [WHOLE, WHOLE + b"more", b"x" * 1000, b"x" * len(WHOLE)],
    ids=["all of it", "too long", "of another file", "as long"],
)
def test_leftovers_are_used_only_when_they_fit(served, tmp_path, left):
    left_before(tmp_path, left)
    assert is_whole(get(served, tmp_path).folder)


def test_an_archive_that_waits_is_not_fetched_again(served, tmp_path):
    folder = tmp_path / "blended_skill_talk"
    folder.mkdir()
    (folder / "train.json").write_bytes(b"mine")
    with pytest.raises(FetchError, match=r"holds train\.json already") as caught:
        get(served, tmp_path)
    assert "--replace" in str(caught.value)
    assert (folder / "train.json").read_bytes() == b"mine" and not (folder / "valid.json").exists()
    assert is_whole(get(served, tmp_path, replace=True).folder)
    assert len(served.asked) == 1


def test_a_killed_unpacking_leaves_nothing_that_counts(served, tmp_path):
    stage = tmp_path / ".fetch" / "blended_skill_talk" / "unpacked"
    stage.mkdir(parents=True)
    (stage / "train.json").write_bytes(b"half")
    assert is_whole(get(served, tmp_path).folder)


# -- Refusals ----------------------------------------------------------------------------------------------------


def test_a_wrong_checksum(served, tmp_path):
    message = refusal(served, tmp_path, archive_of(packed({"train.json": b""})))
    assert hashlib.sha256(WHOLE).hexdigest() in message and served.url in message
    assert "Nothing was unpacked" in message and str(len(WHOLE)) in message
    assert not list((tmp_path / ".fetch").rglob("*.part"))  # the next attempt starts afresh


def test_an_error_page_instead_of_the_archive(served, tmp_path):
    served.data = b"<!DOCTYPE html><html>Log in</html>"
    assert "begin with b'<!DOCTYPE html" in refusal(served, tmp_path, archive_of())


def test_what_is_not_there(served, tmp_path):
    served.statuses = [404]
    message = refusal(served, tmp_path)
    assert "404 Not Found" in message and "--archive" in message
    assert len(served.asked) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x.tgz", "nowhere", "http://127.0.0.1:port/x.tgz"])
def test_an_address_that_is_none(served, tmp_path, url):
    assert "cannot be fetched" in refusal(served, tmp_path, url=url)


def test_nobody_answers(served, tmp_path):
    import socket

    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        message = refusal(served, tmp_path, url=f"http://127.0.0.1:{taken.getsockname()[1]}/a.tgz")
    assert "did not arrive: ConnectError" in message


def test_an_endless_file(served, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "LARGEST_ARCHIVE_BYTES", 1000)
    assert "no archive is above 1000" in refusal(served, tmp_path)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


HOSTILE = {
    "upwards": (member("../outside"), "leads outside"),
    "upwards inside": (member("a/../../outside"), "leads outside"),
    "absolute": (member("/tmp/outside"), "leads outside"),
    "backslash": (member("..\\outside"), "leads outside"),
    "symbolic link": (member("train.json.link", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
    "hard link": (member("other.json", tarfile.LNKTYPE, "train.json"), "is a link"),
    "device": (member("null", tarfile.CHRTYPE), "is a link, a device"),
    "pipe": (member("pipe", tarfile.FIFOTYPE), "is a link, a device"),
    "twice": (member("train.json"), "comes twice"),
    "inside a file": (member("train.json/x"), "comes twice, or inside a file"),
    "bomb": (member("zeros", size=3_000_000), "more than 2000000 bytes unpacked"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive(served, tmp_path, monkeypatch, case):
    monkeypatch.setattr(unpack_module, "LARGEST_UNPACKED_BYTES", 2_000_000)
    entry, said = HOSTILE[case]
    served.data = packed(FILES, entry)
    before = set(tmp_path.parent.rglob("*"))
    root = tmp_path / "data"
    assert said in refusal(served, root)
    assert all(path.is_relative_to(root) for path in set(tmp_path.parent.rglob("*")) - before)
    assert not Path("/tmp/outside").exists()


def test_a_link_followed_by_a_file_below_it(served, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.addfile(member("door", tarfile.SYMTYPE, str(outside)))
        tar.addfile(member("door/file", size=3), io.BytesIO(b"abc"))
    served.data = data.getvalue()
    assert "is a link" in refusal(served, tmp_path / "data")
    assert list(outside.iterdir()) == []


def test_too_many_members(served, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack_module, "MOST_MEMBERS", 3)
    assert "one of more than 3 members" in refusal(served, tmp_path)


@pytest.mark.parametrize("data", [WHOLE[:100_000], b"no archive", gzip.compress(b"no tar")], ids=len)
def test_a_damaged_archive(served, tmp_path, data):
    served.data = data
    assert "is no tar archive, or is cut off" in refusal(served, tmp_path)


def test_an_archive_of_something_else(served, tmp_path):
    served.data = packed({"other.txt": b"x"})
    assert "holds no train.json, valid.json, test.json but other.txt" in refusal(served, tmp_path)


def test_two_fetches_at_once(served, tmp_path):
    (tmp_path / ".fetch").mkdir()
    with FileLock(tmp_path / ".fetch" / "blended_skill_talk.lock"):
        assert "Another process fetches blended_skill_talk" in refusal(served, tmp_path)
    assert is_whole(get(served, tmp_path).folder)


def test_a_root_that_cannot_be_written(served, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="The dataset was not changed"):
        get(served, tmp_path / "file")


# -- The table and the command -----------------------------------------------------------------------------------


def test_the_table_of_archives():
    assert [one.dataset for one in archives_of(["all"])] == list(ARCHIVES)
    assert [one.dataset for one in archives_of(["convai2:normalized", "convai2"])] == ["convai2"]
    assert ARCHIVES["convai2"].url() == f"{BASE_ADDRESS}/convai2/convai2_fix_723.tgz"
    assert ARCHIVES["convai2"].url("https://mirror/x/") == "https://mirror/x/convai2/convai2_fix_723.tgz"
    with pytest.raises(DataError, match="Did you mean convai2"):
        archives_of(["convai3"])


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from distill_engine.commands.data import data_app; data_app()"
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        [sys.executable, "-c", program, "fetch", *arguments],
        cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_command(served, tmp_path):
    base = served.url.rpartition("/")[0]
    sha256 = hashlib.sha256(WHOLE).hexdigest()
    wrong = command("blended_skill_talk", "--root", str(tmp_path), "--url-base", base)
    assert wrong.returncode == 1 and ARCHIVES["blended_skill_talk"].sha256 in wrong.stderr
    assert "Traceback" not in wrong.stderr
    done = command("blended_skill_talk", "--root", str(tmp_path), "--url-base", base, "--sha256", sha256)
    assert done.returncode == 0, done.stderr
    assert "blended_skill_talk is complete" in done.stdout
    facts = json.loads((tmp_path / "blended_skill_talk" / MARKER).read_text())
    assert facts["from"] == f"{base}/blended_skill_talk/blended_skill_talk.tar.gz" and facts["sha256"] == sha256


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["all", "--sha256", "0" * 64], "--sha256 stand for one archive, but 4 datasets are named"),
        (["convai2", "--url", "http://x", "--url-base", "http://y"], "--url-base and --url both say"),
        (["convai2", "--archive", "absent.tgz"], "absent.tgz, which is no file"),
        (["convai2", "--sha256", "abc"], "64 digits"),
    ],
)
def test_options_that_do_not_fit(tmp_path, arguments, said):
    from typer.testing import CliRunner

    from distill_engine.commands.data import data_app

    done = CliRunner().invoke(data_app, ["fetch", *arguments, "--root", str(tmp_path)])
    assert done.exit_code == 78
    assert list(tmp_path.iterdir()) == []
