"""The original archives of the dialogue datasets: addresses, checksums and what they must hold, as ParlAI has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill_engine.data.errors import DataError
from distill_engine.recipe.problem import did_you_mean

BASE_ADDRESS = "http://parl.ai/downloads"


@dataclass(frozen=True)
class Archive:
    """One archive.

    dataset     the dataset's name in recipes
    address  below the base address
    sha256   of the archive, hex
    folder   below data.root, where it is unpacked
    files    what the readers need, relative to `folder`; an archive without them is not taken
    version  what ParlAI writes into `.built` when it has built the folder
    marks_built  the archive is all that ParlAI needs, so ParlAI may take the folder as its own
    """

    dataset: str
    address: str
    sha256: str
    folder: str
    files: tuple[str, ...]
    version: str
    marks_built: bool = True

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.address.rpartition("/")[2]

    def url(self, base: str = BASE_ADDRESS) -> str:
        """Where the archive is, below `base`."""
        return f"{base.rstrip('/')}/{self.address}"


ARCHIVES: dict[str, Archive] = {
    archive.dataset: archive
    for archive in (
        Archive(
            dataset="blended_skill_talk",
            address="blended_skill_talk/blended_skill_talk.tar.gz",
            sha256="5fbed0068ee89e2d43b93c3ecb341e784617033efa5e8e911a219d4eda6134a6",
            folder="blended_skill_talk",
            files=("train.json", "valid.json", "test.json"),
            version="v1.5",
            marks_built=False,  # ParlAI keeps further downloads and its own text form of the episodes beside it
        ),
        Archive(
            dataset="wizard_of_wikipedia",
            address="wizard_of_wikipedia/wizard_of_wikipedia.tgz",
            sha256="2a549627a83fea745efa2076a41d1c0078ad002ab2b54eae6a4e3d3d66ae24b7",
            folder="wizard_of_wikipedia",
            files=(
                "train.json",
                "valid_random_split.json",
                "valid_topic_split.json",
                "test_random_split.json",
                "test_topic_split.json",
            ),
            version="1.0",
        ),
        Archive(
            dataset="convai2",
            address="convai2/convai2_fix_723.tgz",
            sha256="d0ae89defe2fd0b0a4221eaa642a457d7d40cef475f54798119c7f3b8dd9361d",
            folder="ConvAI2",
            files=("train_self_original.txt", "valid_self_original.txt"),
            version="v5.0",
        ),
        Archive(
            dataset="empathetic_dialogues",
            address="empatheticdialogues/empatheticdialogues.tar.gz",
            sha256="56f234d77b7dd1f005fd365bb17769cfe346c3c84295b69bc069c8ccb83be03d",
            folder="empatheticdialogues",
            files=(
                "empatheticdialogues/train.csv",
                "empatheticdialogues/valid.csv",
                "empatheticdialogues/test.csv",
            ),
            version="1.0",
        ),
    )
}


def archives_of(names: Sequence[str]) -> list[Archive]:
    """The archives of these datasets, each once; `all` means every one, `convai2:normalized` is `convai2`.

    Raises DataError for a dataset that has none.
    """
    wanted: dict[str, Archive] = {}
    for name in names:
        dataset = name.partition(":")[0]
        if name != "all" and dataset not in ARCHIVES:
            known = f"Datasets with an archive: {', '.join(ARCHIVES)}, or all. Name one or more of them."
            parts = (f"There is nothing to fetch for {name!r}.", did_you_mean(dataset, ARCHIVES), known)
            raise DataError(" ".join(filter(None, parts)))
        found = ARCHIVES.values() if name == "all" else [ARCHIVES[dataset]]
        wanted |= {archive.dataset: archive for archive in found}
    return list(wanted.values())
