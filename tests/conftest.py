"""For every test: one thread, DeepSpeed on the CPU; and the folders and models that many tests share."""

import os
from pathlib import Path

# Before anything imports torch or deepspeed. To run the tests marked `gpu`, set DS_ACCELERATOR=cuda.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Also before anything imports triton (transformers does): on a CPU its kernels run in Triton's interpreter.
if os.environ["DS_ACCELERATOR"] == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(config, items) -> None:
    """What `--dist loadgroup` keeps together: the tests of a file, or of a folder that starts ranks or a Slurm once."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        folder, name = item.path.relative_to(TESTS).parts[0], item.path.stem
        whole = folder == "multiprocess" or name.startswith(("test_slurm", "test_launchers"))
        item.add_marker(pytest.mark.xdist_group(folder if whole else name))


@pytest.fixture(scope="session", autouse=True)
def token_cache_of_the_tests(tmp_path_factory) -> None:
    """Runs of the tests keep their tokens to themselves."""
    os.environ["DISTILL_ENGINE_CACHE"] = str(tmp_path_factory.mktemp("token_cache"))


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
