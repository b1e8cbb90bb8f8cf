"""The README.md of an exported student: what it is, how good it was when it was exported, how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from distill_engine.metrics.named import POOLED
from distill_engine.registry import names

_TEMPLATE = """---
library_name: transformers
pipeline_tag: text2text-generation
tags:
- distillation
- {family}
---

# {name}

A {family} student{of_teacher}, {parameters:,} parameters, exported at its best validation so far (step {step}).{note}

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForSeq2SeqLM.from_pretrained("path/to/this/folder")
```

## Validation

| metric | value |
|---|---|
{rows}

Teacher-forced, over the whole validation set. `ppl` is the mean of the datasets' perplexities. `teacher_ppl` and
`teacher_token_accuracy` are the teacher's own.

## Recipe

```yaml
{recipe}```

## Machine

```json
{machine}
```
"""


def model_card(
    *,
    recipe_yaml: str,
    name: str,
    family: str,
    teacher: str | None,
    parameters: int,
    step: int,
    metrics: Mapping[str, float],
    machine: Mapping[str, Any],
    note: str = "",
) -> str:
    """Markdown with the metadata block that model hubs read; `note`: what else is to be known of its weights."""
    ordered = [key for key in (POOLED, *names("metrics")) if key in metrics]
    ordered += sorted(key for key in metrics if "/" in key and not key.startswith("sample/"))  # of a few prompts only
    return _TEMPLATE.format(
        name=name,
        family=family,
        of_teacher=f" of `{teacher}`" if teacher else "",
        parameters=parameters,
        step=step,
        note=f" {note}" if note else "",
        rows="\n".join(f"| {key} | {metrics[key]:.5g} |" for key in ordered),
        recipe=recipe_yaml if recipe_yaml.endswith("\n") else recipe_yaml + "\n",
        machine=json.dumps(dict(machine), indent=2),
    )
