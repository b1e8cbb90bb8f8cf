"""A W&B workspace for watching loss terms, as code, built from the metric registry.

`plan` decides what is drawn, without W&B; every registered metric is in it and nothing else is, so a renamed metric
cannot leave a dead panel. `push` turns the plan into a workspace with wandb-workspaces.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distill_engine.registry import load
from distill_engine.telemetry.metrics import Metric, describe, layered_terms, of_teacher, sections, terms

Style = Literal["line", "pct-area"]

DEFAULT_NAME = "distillation"
_AXIS = "step"
_ANY = {"dataset": "[^/]+", "layer": "[0-9]+", "metric": ".+"}
_STACKED = {"Time shares": "where a step's time goes"}
_OPEN = ("Losses", "Loss terms", "Quality")  # sections that are unfolded at first


class DashboardError(ValueError):
    """The workspace cannot be pushed; the text says why and what to do."""


@dataclass(frozen=True)
class PanelPlan:
    """One chart over steps: metrics by name, or all that a regular expression matches."""

    title: str
    metrics: tuple[str, ...] = ()
    pattern: str | None = None
    log: bool = False
    style: Style = "line"


@dataclass(frozen=True)
class SectionPlan:
    """Charts under one heading."""

    name: str
    panels: tuple[PanelPlan, ...]
    is_open: bool


def plan() -> list[SectionPlan]:
    """The registry's sections with a panel for every metric; behind the terms, the attention kinds together."""
    made = []
    for name, metrics in sections().items():
        panels = _panels(metrics)
        if name in _STACKED:
            panels = [PanelPlan(_STACKED[name], tuple(metric.name for metric in metrics), style="pct-area")]
        if panels:
            made.append(SectionPlan(name, tuple(panels), name in _OPEN))
        if name == "Loss terms":
            made.append(_attention())
    return made


def workspace(
    found: Sequence[SectionPlan], entity: str, project: str, name: str = DEFAULT_NAME, url: str | None = None
) -> Any:
    """The plan as a wandb-workspaces Workspace; `url`: of a saved view that is to get these sections instead.

    Raises DashboardError if wandb-workspaces is not installed or the view cannot be read.
    """
    workspaces = _library()
    made = [_section(workspaces, section) for section in found]
    if url is None:
        settings = workspaces.WorkspaceSettings(x_axis=_AXIS, sort_panels_alphabetically=False)
        return workspaces.Workspace(entity=entity, project=project, name=name, sections=made, settings=settings)
    try:
        held = workspaces.Workspace.from_url(url)
    except Exception as error:
        raise DashboardError(f"the view {url} cannot be read: {_reason(error)}. Give the address of a view.") from error
    held.sections = made
    return held


def workspace_json(made: Any) -> dict[str, Any]:
    """What would be sent for a workspace: its specification as W&B keeps it."""
    content: dict[str, Any] = made._to_model().spec.model_dump(by_alias=True, exclude_none=True, mode="json")
    return content


def push(found: Sequence[SectionPlan], entity: str | None, project: str, name: str, url: str | None = None) -> str:
    """Save the workspace at W&B and return its address. Key and server are wandb's own (WANDB_API_KEY, ~/.netrc,
    WANDB_BASE_URL).

    entity  team or user; None: the account's default
    Raises DashboardError with the reason if W&B does not take it.
    """
    _library()
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    try:
        owner = entity or wandb.Api().default_entity
        if not owner:
            raise DashboardError("W&B knows no default entity for this key. Name one with --entity.")
        made = workspace(found, owner, project, name, url)
        made.save()
        return str(made.url)
    except DashboardError:
        raise
    except Exception as error:  # whatever wandb raises on a bad key, an unknown project or a dead server
        raise DashboardError(
            f"W&B did not take the workspace for project {project!r}: {_reason(error)}. Check the key (`wandb login`), "
            "the project (a run must have been logged there) and the network; --dry-run needs none of them."
        ) from error


# ---- the plan ----------------------------------------------------------------------------------------------------


def _panels(metrics: Sequence[Metric]) -> list[PanelPlan]:
    """Panels for the metrics of one section; a measure of training and validation is one panel, under training."""
    made = []
    for metric in metrics:
        if metric.name == _AXIS or _is_second(metric.name):
            continue
        made += _term_panels(metric) if "{term}" in metric.name else [_panel(metric)]
    return made


def _panel(metric: Metric) -> PanelPlan:
    log = metric.better == "lower" and metric.unit == ""
    if "{" in metric.name:
        return PanelPlan(_title(metric.name), pattern=_expression(metric.name), log=log)
    return PanelPlan(_title(metric.name), (metric.name, *_twins(metric.name)), log=log)


def _term_panels(metric: Metric) -> list[PanelPlan]:
    """Raw: a panel per term (their scales differ). Weighted: all together, as values and as shares of the total.
    By layer: a panel per term that has layers."""
    names = [metric.name.replace("{term}", term) for term in terms()]
    if "{layer}" in metric.name:
        own = [metric.name.replace("{term}", term) for term in layered_terms()]
        return [PanelPlan(_title(name), pattern=_expression(name), log=True) for name in own]
    if metric.name.endswith("/{term}"):  # of one unit for all terms: together
        style: Style = "pct-area" if metric.unit == "share" else "line"
        return [PanelPlan(_title(metric.name), tuple(names), log=style == "line", style=style)]
    if metric.name.endswith("/weighted"):
        together = tuple(names)
        return [
            PanelPlan("weighted terms", together, log=True),
            PanelPlan("share of the loss", together, style="pct-area"),
        ]
    return [PanelPlan(_title(name), (name, *_twins(name)), log=True) for name in names]


def _attention() -> SectionPlan:
    """Encoder, decoder and cross attention beside each other, and layer by layer."""
    compared = [term for term in terms() if load("terms", term).operand == "scores"]
    raw = tuple(f"train/term/{term}/raw" for term in compared)
    weighted = tuple(f"train/term/{term}/weighted" for term in compared)
    layers = [
        PanelPlan(f"{term} by layer", pattern=_expression(f"train/term/{term}/layer/{{layer}}")) for term in compared
    ]
    panels = (PanelPlan("attention, raw", raw, log=True), PanelPlan("attention, weighted", weighted, log=True), *layers)
    return SectionPlan("Attention", panels, is_open=False)


def _twins(name: str) -> list[str]:
    """The validation twin of a training metric, and what the teacher has there, if they are registered."""
    kind, _, rest = name.partition("/")
    twin = f"valid/{rest}"
    return [one for one in (twin, of_teacher(twin)) if kind == "train" and _registered(one)]


def _is_second(name: str) -> bool:
    """Whether a metric is drawn with its training twin, or the student's."""
    kind, _, rest = name.partition("/")
    plain = rest.replace("{term}", next(iter(terms())))
    drawn = _registered(f"train/{plain}") or _registered(f"train/{plain.removeprefix('teacher_')}")
    return kind == "valid" and "{dataset}" not in rest and drawn


def _registered(name: str) -> bool:
    try:
        describe(name)
    except KeyError:
        return False
    return True


def _title(name: str) -> str:
    words = name.replace("/{dataset}", "").replace("{metric}", "so far").replace("/{layer}", "s")
    words = words.replace("/{term}", " by term")
    return words.replace("train/term/", "").replace("train/", "").replace("_", " ")


def _expression(name: str) -> str:
    """A regular expression for all concrete names of a pattern."""
    parts = re.split(r"\{(\w+)\}", name)
    return "".join(_ANY[part] if index % 2 else re.escape(part) for index, part in enumerate(parts))


# ---- W&B ---------------------------------------------------------------------------------------------------------


def _section(workspaces: Any, section: SectionPlan) -> Any:
    import wandb_workspaces.reports.v2 as reports

    panels = [
        reports.LinePlot(
            title=panel.title,
            x=_AXIS,
            y=list(panel.metrics),
            metric_regex=panel.pattern,
            log_y=panel.log or None,
            plot_type=panel.style,
        )
        for panel in section.panels
    ]
    return workspaces.Section(name=section.name, panels=panels, is_open=section.is_open)


def _library() -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise DashboardError(
            f"wandb-workspaces cannot be imported ({error}). It is an extra of this package: "
            "pip install -e '.[dashboards]' in its repository's folder."
        ) from error
    return workspaces


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}"
