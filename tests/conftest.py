"""For every test: one thread, DeepSpeed on the CPU; and the folders and models that many tests share."""

import contextlib
import os
import signal
from pathlib import Path

with contextlib.suppress(ImportError):  # torch.compile imports it late, which fails where distutils was imported first
    import setuptools  # noqa: F401

# Before anything imports torch or deepspeed. To run the tests marked `gpu`, set DS_ACCELERATOR=cuda.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Also before anything imports triton (transformers does): on a CPU its kernels run in Triton's interpreter.
if os.environ["DS_ACCELERATOR"] == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

# A shell that starts the tests in the background ignores these for it (nohup, `&`), and children inherit that.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items):
    from places import turn_of

    items.sort(key=lambda item: turn_of(item.nodeid))


def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile` by `place_of`, in the order in which tests are collected."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # would begin with the places of many tests
    from places import place_of
    from xdist.scheduler import LoadScopeScheduling

    class ByPlace(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return place_of(nodeid)

    return ByPlace(config, log)


@pytest.fixture(scope="session", autouse=True)
def token_cache_of_the_tests(tmp_path_factory) -> None:
    """Runs of the tests keep their tokens to themselves."""
    os.environ["DISTILL_ENGINE_CACHE"] = str(tmp_path_factory.mktemp("token_cache"))


@pytest.fixture(scope="session")
def make_warm(tmp_path_factory):
    """Makes processes from which programs are forked (tests/warm.py), and stops them."""
    from warm import Warm

    made = []

    def make() -> Warm:
        made.append(Warm(tmp_path_factory.mktemp("warm")))
        return made[-1]

    yield make
    for warm in made:
        warm.stop()


@pytest.fixture(scope="session")
def warm(make_warm):
    """The one that most tests share."""
    return make_warm()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return TESTS.parent


@pytest.fixture(scope="session")
def tiny():
    """The module tests/tiny_models.py; loaded when first asked for, since it needs torch and transformers."""
    import tiny_models

    return tiny_models


@pytest.fixture(scope="session")
def teachers(tiny, tmp_path_factory) -> dict[str, Path]:
    """Family -> folder of a tiny teacher."""
    folder = tmp_path_factory.mktemp("teachers")
    return {family: tiny.save_teacher(folder / family, family) for family in ("blenderbot", "bart")}
