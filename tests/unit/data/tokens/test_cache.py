"""The token cache: what is kept under which name, and what happens when processes die, race or find damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from distill_engine.cluster.files import default_cache_folder
from distill_engine.data.episodes import Episode, Turn
from distill_engine.data.formats.parlai_text import read_parlai_text
from distill_engine.data.tokens import cache as token_cache
from distill_engine.data.tokens.cache import Content, TokenCache
from distill_engine.data.tokens.tokenised import TokenisedDataset
from distill_engine.data.tokens.tokenize import DialogueTokenizer

LINES = [
    "text:hello there\tlabels:do you mend clocks ?",
    "text:yes i do .\tlabels:the clock runs late\tepisode_done:True",
    "text:i have a cat\tlabels:nice\tepisode_done:True",
]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "talk.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture
def encoder(tokenizer, blenderbot_layout) -> DialogueTokenizer:
    return DialogueTokenizer(tokenizer, blenderbot_layout, "\n", 64, 64)


class Bench:
    """A cache in a folder, one source, and how often that was read."""

    def __init__(self, folder: Path, file: Path, encoder: DialogueTokenizer) -> None:
        self.folder, self.file, self.encoder = folder, file, encoder
        self.options: dict[str, object] = {"name": "parlai_text"}
        self.messages: list[str] = []
        self.reads = 0
        self.left_out: list[str] = []  # filled when all is read
        self.in_the_middle: Callable[[], object] = lambda: None
        self.cache = TokenCache(folder, self.messages.append)

    def episodes(self) -> Iterator[Episode]:
        self.reads += 1
        for episode in read_parlai_text(str(self.file)):
            self.in_the_middle()
            yield episode
        self.left_out[:] = ["2 rows"]

    def dataset(self, cache: TokenCache | None = None, encoder: DialogueTokenizer | None = None) -> TokenisedDataset:
        source = Content("talk, train", (self.file,), self.options, self.episodes, self.left_out)
        return (cache or self.cache).dataset(source, encoder or self.encoder, lambda episodes: None)

    def fresh(self) -> TokenCache:
        """As another process sees it."""
        return TokenCache(self.folder, self.messages.append)

    @property
    def entries(self) -> list[Path]:
        return sorted((self.folder / "tokens").iterdir()) if (self.folder / "tokens").is_dir() else []


@pytest.fixture
def bench(tmp_path, file, encoder) -> Bench:
    return Bench(tmp_path / "cache", file, encoder)


def same(one: TokenisedDataset, other: TokenisedDataset) -> bool:
    return (
        np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.bounds, other.bounds)
        and (one.layout, one.limits, one.skipped, one.facts) == (other.layout, other.limits, other.skipped, other.facts)
    )


# -- what is kept ------------------------------------------------------------------------------------------------


def test_what_was_left_out_is_known_from_the_entry_and_without_one(bench, tmp_path):
    assert bench.dataset().left_out == ("2 rows",)
    bench.left_out.clear()  # as in another process, which reads nothing
    assert bench.dataset(bench.fresh()).left_out == ("2 rows",) and bench.reads == 1
    (tmp_path / "file").touch()
    nowhere = TokenCache(tmp_path / "file", bench.messages.append)
    assert bench.dataset(nowhere).left_out == ("2 rows",) and bench.reads == 2


def test_the_second_time_comes_from_the_disk_and_is_the_same(bench):
    plain = bench.encoder.tokenise(bench.episodes())
    first, second = bench.dataset(), bench.dataset(bench.fresh())
    assert bench.reads == 2  # one for `plain`
    assert same(first, plain) and same(second, plain)
    assert (plain.episodes, len(plain), plain.largest_id) == (2, 3, max(int(plain.tokens.max()), 2))
    assert isinstance(second.tokens.base, np.memmap) and not second.tokens.flags.writeable
    assert bench.messages == []


def test_several_chunks_are_joined_rightly(bench, monkeypatch):
    monkeypatch.setattr("distill_engine.data.tokens.tokenize._CHUNK_EPISODES", 1)
    chunked = bench.dataset()
    monkeypatch.undo()
    assert same(chunked, bench.encoder.tokenise(bench.episodes()))


def test_skipped_examples_are_remembered_and_told_when_they_are_found(bench, caplog):
    bench.file.write_text("text:\tlabels:hello\n" + "\n".join(LINES) + "\n")
    assert bench.dataset().skipped == 1 and "left out" in caplog.text
    caplog.clear()
    assert bench.dataset(bench.fresh()).skipped == 1 and caplog.text == ""


def test_place_and_time_of_a_file_do_not_matter_its_content_does(bench, tmp_path):
    bench.dataset()
    moved = tmp_path / "elsewhere.txt"
    moved.write_bytes(bench.file.read_bytes())
    bench.file = moved
    bench.dataset(bench.fresh())
    assert bench.reads == 1
    moved.write_text(moved.read_text().replace("cat", "dog"))  # as long as before
    changed = bench.dataset(bench.fresh())
    assert bench.reads == 2 and same(changed, bench.encoder.tokenise(bench.episodes()))


def test_a_remembered_digest_is_not_believed_of_a_changed_file(bench):
    settled = bench.file.stat().st_mtime - 3600
    os.utime(bench.file, (settled, settled))
    bench.cache._digests.remember(bench.file, "0" * 64)
    assert bench.cache._digests.of(bench.file) == "0" * 64  # believed while nothing changes: no byte is read
    with bench.file.open("r+b") as opened:
        opened.write(b"T")
    os.utime(bench.file, (settled, settled))  # a copy that keeps times; what changed is the time of the change
    assert bench.cache._digests.of(bench.file) != "0" * 64


def test_options_tokenizer_delimiter_and_readers_make_other_entries_limits_do_not(
    bench, tokenizer, bare_tokenizer, blenderbot_layout, bart_layout, monkeypatch
):
    bench.dataset()
    bench.dataset(encoder=DialogueTokenizer(tokenizer, bart_layout, "\n", 9, 3))
    assert (bench.reads, len(bench.entries)) == (1, 1)
    bench.dataset(encoder=DialogueTokenizer(tokenizer, blenderbot_layout, "  ", 64, 64))
    bench.dataset(encoder=DialogueTokenizer(bare_tokenizer, blenderbot_layout, "\n", 64, 64))
    bench.options = {"name": "fbdialog"}
    bench.dataset()
    monkeypatch.setattr(token_cache, "_FORMAT", token_cache._FORMAT + 1)
    bench.dataset()
    assert (bench.reads, len(bench.entries)) == (5, 5)


def test_a_folder_is_the_content_of_all_its_files(bench, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("b", "a"):
        (folder / name).write_text(name)
    source = Content("parts", (folder,), {}, bench.episodes)
    for _ in range(2):
        bench.cache.dataset(source, bench.encoder, lambda episodes: None)
    (folder / "c").write_text("c")
    bench.cache.dataset(source, bench.encoder, lambda episodes: None)
    assert bench.reads == 2


def test_a_task_without_files_is_made_in_memory(bench):
    source = Content("invented", (), {}, bench.episodes)
    for reads in (1, 2):
        assert len(bench.cache.dataset(source, bench.encoder, lambda episodes: None)) == 3
        assert bench.reads == reads
    assert not bench.folder.exists()


def test_progress_hears_of_every_episode(bench):
    told: list[int] = []
    bench.cache.dataset(Content("talk", (bench.file,), {}, bench.episodes), bench.encoder, told.append)
    assert sum(told) == 2


def test_where_the_cache_lies():
    home = Path("~/.cache").expanduser()
    assert default_cache_folder({}) == home / "distill_engine"
    assert default_cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/distill_engine")
    assert default_cache_folder({"XDG_CACHE_HOME": "/x", "DISTILL_ENGINE_CACHE": "~/y"}) == Path("~/y").expanduser()


# -- what goes wrong ---------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit in the tokens": lambda entry: flip(entry / "tokens.bin"),
    "a flipped bit in the bounds": lambda entry: flip(entry / "bounds.bin"),
    "cut tokens": lambda entry: os.truncate(entry / "tokens.bin", 8),
    "an empty record": lambda entry: (entry / "entry.json").write_text(""),
    "a record of something else": lambda entry: (entry / "entry.json").write_text("[1]"),
    "a changed count": lambda entry: (entry / "entry.json").write_text(
        (entry / "entry.json").read_text().replace('"skipped": 0', '"skipped": 7')
    ),
    "a missing file": lambda entry: (entry / "bounds.bin").unlink(),
    "an empty folder": lambda entry: [file.unlink() for file in entry.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_made_again(bench, damage):
    before = bench.dataset()
    wanted = (before.tokens.copy(), before.bounds.copy())
    (entry,) = bench.entries
    damage(entry)
    again = bench.dataset(bench.fresh())
    assert bench.reads == 2 and len(bench.messages) == 1
    assert "damaged" in bench.messages[0] and str(entry) in bench.messages[0]
    assert np.array_equal(again.tokens, wanted[0]) and np.array_equal(again.bounds, wanted[1])
    assert bench.dataset(bench.fresh()).skipped == 0 and bench.reads == 2
    assert bench.entries == [entry]


@pytest.mark.parametrize("obstacle", ["a file in its place", "no right to write", "a full disk"])
def test_a_folder_that_cannot_be_written_means_memory_and_one_message(bench, monkeypatch, obstacle):
    if obstacle == "a file in its place":
        bench.folder.write_text("")
    elif obstacle == "no right to write":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        bench.folder.mkdir(mode=0o500)
    else:
        monkeypatch.setattr(token_cache, "write_entry", full_disk)
    for _ in range(2):
        assert same(bench.dataset(), bench.encoder.tokenise(bench.episodes()))
    assert len(bench.messages) == 1
    assert str(bench.folder) in bench.messages[0] and "data.cache_dir" in bench.messages[0]
    assert bench.entries == []


def full_disk(*arguments):
    raise token_cache.UnwritableError("[Errno 28] No space left on device")


def test_a_write_that_fails_in_the_middle_leaves_nothing(bench, tmp_path):
    """A real failing write: the process may not make files above 4 KiB."""
    bench.file.write_text("\n".join(LINES * 200) + "\n")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.argv[0] = sys.argv[1]; del sys.argv[1];"
        "exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *worker(bench, tmp_path, "build")], input="\n", text=True, capture_output=True,
        env=environment(), check=True,
    )  # fmt: skip
    _, message, facts = run.stdout.splitlines()
    assert "cannot be written" in message and "File too large" in message
    assert json.loads(facts)["examples"] == 600
    assert bench.entries == []


def test_what_is_there_is_used_also_where_nothing_can_be_added(bench, monkeypatch):
    bench.dataset()
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert isinstance(bench.dataset(bench.fresh()).tokens.base, np.memmap)
    assert (bench.reads, bench.messages) == (1, [])


def refuse(*arguments, **options):
    raise PermissionError(13, "Permission denied")


def test_an_error_of_the_reader_comes_through_and_leaves_nothing(bench):
    def fail() -> None:
        raise RuntimeError("line 2 is bad")

    bench.in_the_middle = fail
    with pytest.raises(RuntimeError, match="line 2 is bad"):
        bench.dataset()
    assert bench.entries == [] and bench.messages == []
    bench.in_the_middle = lambda: None
    assert len(bench.dataset()) == 3


def test_a_missing_file_is_the_readers_to_tell(bench):
    bench.file = bench.file.with_name("absent.txt")
    with pytest.raises(ValueError, match=r"no file .*absent\.txt"):
        bench.dataset()


def test_without_locks_two_makers_end_with_one_entry(bench, monkeypatch):
    def no_locks(*arguments, **options):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    other: list[TokenisedDataset] = []

    def let_another_finish() -> None:
        bench.in_the_middle = lambda: None
        other.append(bench.dataset(bench.fresh()))

    bench.in_the_middle = let_another_finish
    mine = bench.dataset()
    assert same(mine, other[0]) and bench.reads == 2
    assert len(bench.entries) == 1 and bench.messages == []


# -- processes ---------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"}


def worker(bench: Bench, folder: Path, action: str) -> list[str]:
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(bench.encoder._backend.facts()[1])
    script = Path(__file__).with_name("cache_worker.py")
    return [str(script), action, str(bench.folder), str(tokenizer), str(bench.file)]


def started(bench: Bench, folder: Path, action: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *worker(bench, folder, action)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


def test_a_killed_maker_leaves_nothing_that_counts(bench, tmp_path):
    with started(bench, tmp_path, "hang") as process:
        assert process.stdout.readline() == "begun\n"
        (half,) = bench.entries
        assert half.name.startswith(".") and (half / "tokens.bin").stat().st_size > 0
        process.send_signal(signal.SIGKILL)
        process.wait()
    bench.options = {}
    assert len(bench.dataset()) == 3 and bench.reads == 1
    (entry,) = bench.entries
    assert entry.name == half.name.split(".")[1]  # the same one, finished; the half of it is gone


def test_two_makers_at_once_make_it_once(bench, tmp_path):
    bench.file.write_text("\n".join(LINES * 2000) + "\n")
    processes = [started(bench, tmp_path, "build") for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    facts = []
    for process in processes:
        said = process.communicate()[0].splitlines()
        assert process.returncode == 0
        facts.append(json.loads(said[-1]))
    assert sorted(fact["read"] for fact in facts) == [0, 4000]
    assert {fact["examples"] for fact in facts} == {6000} and len({fact["digest"] for fact in facts}) == 1
    assert len(bench.entries) == 1


def test_a_corpus_larger_than_the_memory_is_tokenised_and_shuffled(bench, tmp_path):
    with started(bench, tmp_path, "bounded") as process:
        said = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 0 and said[0] == "the limit holds"
    facts = json.loads(said[1])
    assert facts["bytes"] > 100 * 2**20
    assert (facts["examples"], facts["seen"]) == (20_000, 80 * 64)


def test_turns_of_an_episode_are_counted_as_examples_with_something_before_them(bench):
    turns = [(("", "hello"),), (("a", "b"), ("yes", "nice")), (("i", "do"),)]
    episodes = [Episode(tuple(Turn(*pair) for pair in episode)) for episode in turns]
    dataset = bench.encoder.tokenise(episodes)
    assert (len(dataset), dataset.episodes, dataset.skipped) == (3, 2, 1)
