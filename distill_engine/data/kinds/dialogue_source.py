"""What a recipe says of a source of dialogues, and the names of all of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill_engine.data.kinds.protocol import Source

FOLDER_DATASETS = ("hf_dataset",)
FILE_DATASETS = ("parlai_text", "conversations", "fbdialog", *FOLDER_DATASETS)
# ParlAI's folder of each dialogue dataset below data.root.
DIALOGUE_DATASETS = {
    "blended_skill_talk": "blended_skill_talk",
    "wizard_of_wikipedia": "wizard_of_wikipedia",
    "convai2": "ConvAI2",
    "convai2:normalized": "ConvAI2",
    "empathetic_dialogues": "empatheticdialogues",
}
READABLE_DATASETS = ("demo", *FILE_DATASETS, *DIALOGUE_DATASETS)


class DialogueSource(Source):
    """One source of dialogues."""

    kind: Literal["dialogue"] = "dialogue"
    name: str = Field(
        description="`demo`; a file format: `parlai_text`, `conversations`, `fbdialog`, `hf_dataset`; or a dialogue "
        "dataset's ParlAI name (data.root): `blended_skill_talk`, `wizard_of_wikipedia`, `convai2`, "
        "`convai2:normalized`, `empathetic_dialogues`."
    )
    label_turns: Literal["second_speaker", "first_speaker", "both", "last"] = Field(
        "second_speaker", description="conversations: whose turns are learnt; last: nothing but the last turn."
    )
    seed: int = Field(0, description="demo: seed of the generator.")
    topic_split: bool = Field(
        False, description="wizard_of_wikipedia: validate and test on topics that training never saw."
    )
    normalized: bool = Field(
        True, description="hf_dataset with ConvAI2's columns: spelling as in convai2:normalized; false: as in convai2."
    )

    def spec(self, root: str | None) -> DialogueSpec:
        """As the readers take it."""
        return DialogueSpec(**self.model_dump(), root=root)


class DialogueSpec(DialogueSource):
    """The same, and the folder of downloaded datasets for readers that look there."""

    root: str | None = None
