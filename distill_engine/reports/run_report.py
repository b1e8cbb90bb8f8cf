"""`distill report`: everything a run has recorded, on one page."""

from __future__ import annotations

from collections.abc import Sequence

from distill_engine.metrics.named import in_one_line
from distill_engine.reports import page, plots
from distill_engine.reports.history import RunHistory, RunHistoryError
from distill_engine.telemetry.metrics import describe, of_teacher, sections, terms
from distill_engine.telemetry.progress_view import about, number, quantity
from distill_engine.telemetry.sinks import Record

_LAST = ("Progress",)  # straight lines in a healthy run: the losses come before them
_MOST_ROWS = 40  # validations and messages; a page is for reading, metrics.jsonl has them all


def run_report(history: RunHistory) -> str:
    """The page as HTML. Raises RunHistoryError if there is no record yet."""
    if not history.records:
        raise RunHistoryError(f"{history.folder} has no record yet: there is nothing to report. Try again later.")
    names = history.names()
    body = [
        page.heading(history.name, 1),
        page.paragraph(_headline(history), quiet=True),
        page.tiles(_tiles(history)),
    ]
    made = _section_plots(history, names)
    for section in sorted(made, key=lambda section: section in _LAST):
        if made[section]:
            body += [page.heading(section), page.plots(made[section])]
    body += _tables(history, names)
    if history.recipe_text:
        body += [page.heading("Recipe"), page.folded("recipe.yaml, every default written out", history.recipe_text)]
    return page.page(f"{history.name}: training report", body)


def _headline(history: RunHistory) -> str:
    limit = f" of {history.max_steps}" if history.max_steps is not None else ""
    return f"{history.phase} at step {history.step}{limit} after {about(history.seconds)} of training"


def _tiles(history: RunHistory) -> list[tuple[str, str]]:
    train, valid = history.last("train"), history.last("valid")
    facts = [("train/total", "loss"), ("train/ppl", "train ppl")]
    shown = [(label, quantity(name, train[name])) for name, label in facts if name in train]
    decisive = f"valid/{history.metric}"
    if decisive in valid:
        shown.append((f"valid {history.metric}", quantity(decisive, valid[decisive])))
    best = history.best()
    if best is not None:
        shown.append((f"best {history.metric}", quantity(decisive, best)))
    others = ((label, name) for label, name in in_one_line().items() if name != decisive)
    shown += [(label, quantity(name, valid[name])) for label, name in others if name in valid]
    if "train/tokens_per_second" in train:
        shown.append(("tokens/s", number(train["train/tokens_per_second"])))
    return shown


# ---- plots -------------------------------------------------------------------------------------------------------


def _section_plots(history: RunHistory, names: Sequence[str]) -> dict[str, list[str]]:
    """Section of the registry -> its plots. Every recorded metric that ever changed is in one of them; what is
    measured in training and validation is in one plot."""
    made = {}
    changing = [name for name in names if len(set(history.series(name)[1])) > 1 or name.startswith("valid/")]
    for section in sections():
        own = [name for name in changing if describe(name).section == section and name != "step"]
        if section in _OWN_PLOTS:
            made[section] = _OWN_PLOTS[section](history, own)
        else:
            beside = {of_teacher(name) for name in changing}
            alone = [name for name in own if _twin(name) not in changing or name.startswith("train/")]
            alone = [name for name in alone if name not in beside]
            made[section] = [_line_plot(history, name) for name in alone]
    return made


def _twin(name: str) -> str:
    """The same measure in training or validation: train/ppl <-> valid/ppl."""
    kind, _, rest = name.partition("/")
    return {"train": f"valid/{rest}", "valid": f"train/{rest}"}.get(kind, "")


def _line_plot(history: RunHistory, name: str) -> str:
    """One metric over the steps, together with its twin and its teacher's value if those were recorded."""
    metric = describe(name)
    validated = name if name.startswith("valid/") else _twin(name)
    named = {name.partition("/")[0]: name, _twin(name).partition("/")[0]: _twin(name), "teacher": of_teacher(validated)}
    series = {label: history.series(one) for label, one in named.items() if history.series(one)[0]}
    title = name if len(series) == 1 else name.partition("/")[2]
    shown = series if len(series) > 1 else {name: history.series(name)}
    return page.plot(plots.lines(title, shown, metric.unit, log=metric.better == "lower"), metric.meaning)


def _terms(history: RunHistory, names: Sequence[str]) -> list[str]:
    """Each raw term alone (their scales differ by orders of magnitude), and all weighted ones as shares."""
    weighted = [f"train/term/{term}/weighted" for term in terms() if f"train/term/{term}/weighted" in names]
    drawn = []
    if weighted:
        series = {name.split("/")[2].replace("_", " "): history.series(name) for name in weighted}
        same = {tuple(steps) for steps, _ in series.values()}
        if len(same) == 1:
            text = "Each term times its weight: its part of the total that is minimised."
            drawn.append(page.plot(plots.shares("share of the loss", series), text, wide=True))
        svg = plots.lines("weighted terms", series, "loss", log=True, wide=True)
        drawn.append(page.plot(svg, "Each term times its weight.", wide=True))
    for term, meaning in terms().items():
        name = f"train/term/{term}/raw"
        if name in names:
            series = {kind: history.series(f"{kind}/term/{term}/raw") for kind in ("train", "valid")}
            shown = {kind: values for kind, values in series.items() if values[0]}
            svg = plots.lines(f"{term.replace('_', ' ')} (raw)", shown, log=True)
            drawn.append(page.plot(svg, f"{meaning[0].upper()}{meaning[1:]}."))
    return drawn


def _gradients(history: RunHistory, names: Sequence[str]) -> list[str]:
    """All terms' norms in one plot, and their shares as areas."""
    drawn = []
    norms, shares = (
        {name.split("/")[2].replace("_", " "): history.series(name) for name in names if name.startswith(kind)}
        for kind in ("train/gradient_norm/", "train/gradient_share/")
    )
    if norms:
        svg = plots.lines("gradient norm by term", norms, "norm", log=True, wide=True)
        drawn.append(page.plot(svg, "How hard each term pulls.", wide=True))
    if shares and len({tuple(steps) for steps, _ in shares.values()}) == 1:
        text = "Each term's gradient norm / the sum of all terms'."
        drawn.append(page.plot(plots.shares("share of the gradient", shares), text, wide=True))
    return drawn


def _balance(history: RunHistory, names: Sequence[str]) -> list[str]:
    """All factors in one plot: they are only interesting beside each other."""
    series = {name.rsplit("/", 1)[1].replace("_", " "): history.series(name) for name in names}
    text = "What each term's weight is multiplied by."
    return [page.plot(plots.lines("factor of the weight by term", series, log=True, wide=True), text)]


def _layers(history: RunHistory, names: Sequence[str]) -> list[str]:
    """A heat map per term: which layer pair is far from its teacher, and when it came closer."""
    drawn = []
    for term in terms():
        own = sorted((n for n in names if n.split("/")[2] == term), key=lambda name: int(name.rsplit("/", 1)[1]))
        if not own:
            continue
        found = [dict(zip(*history.series(name), strict=True)) for name in own]
        steps = sorted(set.intersection(*(set(row) for row in found)))
        if steps:
            rows = [[row[step] for step in steps] for row in found]
            drawn.append(page.plot(plots.heat(term.replace("_", " "), steps, rows), "Raw term of each layer pair."))
    return drawn


def _time_shares(history: RunHistory, names: Sequence[str]) -> list[str]:
    series = {name.rsplit("/", 1)[1]: history.series(name) for name in names}
    if len({tuple(steps) for steps, _ in series.values()}) != 1:
        return [_line_plot(history, name) for name in names]
    return [page.plot(plots.shares("where a step's time goes", series), "Parts of a training step.", wide=True)]


def _by_dataset(history: RunHistory, names: Sequence[str]) -> list[str]:
    """One plot per metric with a line per dataset."""
    drawn = []
    for metric in dict.fromkeys(name.rsplit("/", 1)[1] for name in names):
        own = [name for name in names if name.rsplit("/", 1)[1] == metric]
        series = {name.split("/")[1]: history.series(name) for name in own}
        described = describe(own[0])
        drawn.append(
            page.plot(plots.lines(f"{metric} by dataset", series, described.unit, log=described.better == "lower"))
        )
    return drawn


_OWN_PLOTS = {
    "Loss terms": _terms,
    "Loss terms by layer": _layers,
    "Gradients by term": _gradients,
    "Loss balance": _balance,
    "Time shares": _time_shares,
    "Validation by dataset": _by_dataset,
}


# ---- tables ------------------------------------------------------------------------------------------------------


def _tables(history: RunHistory, names: Sequence[str]) -> list[str]:
    body = []
    validations = [record for record in history.records if record.kind == "valid"]
    if validations:
        body += [page.heading("Validations"), _validations(history)]
    body += _samples(history)
    rows = []
    for name in names:
        metric = describe(name)
        values = history.series(name)[1]
        rows.append([name, number(values[0]), number(values[-1]), metric.unit or "-", metric.meaning])
    whole = page.table(["metric", "first", "last", "unit", "meaning"], rows, numbers=(1, 2))
    body += [page.heading("All metrics"), page.folded_html(f"{len(rows)} metrics, first and last value", whole)]
    said = [record for record in history.records if record.kind == "event" and record.text]
    if said:
        texts = [[str(record.step), record.text] for record in said[-_MOST_ROWS:]]
        body += [page.heading("Messages"), page.table(["step", "message"], texts, numbers=False)]
    return body


def _validations(history: RunHistory) -> str:
    decisive = f"valid/{history.metric}"
    records = [record for record in history.records if record.kind == "valid"]
    columns = dict.fromkeys(name for record in records for name in record.values if name.startswith("valid/"))
    plain = [name for name in columns if name.count("/") == 1 and name != decisive]
    chosen = [decisive, *plain] if decisive in columns else plain
    values = [record.values.get(decisive, float("nan")) for record in records]
    better = min if history.recipe is None or history.recipe.validation.better == "min" else max
    finite = [value for value in values if value == value]
    best = records[values.index(better(finite))] if finite else None
    shown = _chosen(records, best)
    rows = [
        [str(record.step), *(quantity(n, record.values[n]) if n in record.values else "-" for n in chosen)]
        for record in shown
    ]
    mark = next((index for index, record in enumerate(shown) if record is best), None)
    return page.table(["step", *(name.removeprefix("valid/") for name in chosen)], rows, best=mark)


def _samples(history: RunHistory) -> list[str]:
    """The last sample replies, with the first ones beside them: what the student has learnt."""
    records = [record for record in history.records if record.kind == "samples" and record.rows]
    if not records:
        return []
    first, last = records[0], records[-1]
    names = [name for name in last.rows[0] if name != "student"]
    earlier = [row.get("student", "") for row in first.rows] if len(first.rows) == len(last.rows) > 0 else []
    header = [*names, *([f"student, step {first.step}"] if earlier and first is not last else [])]
    rows = []
    for index, row in enumerate(last.rows):
        before = [earlier[index]] if len(header) > len(names) else []
        rows.append([*(row.get(name, "") for name in names), *before, row.get("student", "")])
    about = "Replies to fixed validation examples, with the student's own generation settings."
    return [
        page.heading("Sample replies"),
        page.paragraph(about, quiet=True),
        page.table([*header, f"student, step {last.step}"], rows, numbers=False),
    ]


def _chosen(records: list[Record], best: Record | None) -> list[Record]:
    """The last records, with the best one in front if it is older."""
    last = records[-_MOST_ROWS:]
    return last if best is None or any(record is best for record in last) else [best, *last]
