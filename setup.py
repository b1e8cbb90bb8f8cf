"""The folders beside the code travel in the wheel; everything else about the build stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("ds_configs", "recipes", "slurm")


class BuildWithFolders(build_py):
    """Copies them into distill_engine/shipped, where recipe/shipped.py finds them. An editable install reads the
    repository itself."""

    def run(self) -> None:
        """Build as setuptools does, then add the folders."""
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            target = Path(self.build_lib, "distill_engine", "shipped", name)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build in the same folder
            shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__", "runs"))


setup(cmdclass={"build_py": BuildWithFolders})
