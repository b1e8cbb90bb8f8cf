"""A form of a student that the package does not know: how many numbers each of its tensors has."""

import json

from safetensors.numpy import load_file

from distill_engine.export.protocol import Target, TargetError
from distill_engine.registry import register


class Counts(Target):
    """One JSON file, which nobody can generate from."""

    meaning = "elements of each tensor, as JSON"
    quantizations = ("dozens",)

    def write(self, student, target, quantize, recipe):
        counts = {name: array.size for name, array in load_file(student / "model.safetensors").items()}
        if not counts:
            raise TargetError(f"{student} has no tensor. Give a student with weights.")
        target.mkdir()
        size = 12 if quantize == "dozens" else 1
        (target / "counts.json").write_text(json.dumps({name: count // size for name, count in counts.items()}))

    def open(self, folder):
        return None


COUNTS = Counts()
register("exports", "counts", "toy_export:COUNTS")
