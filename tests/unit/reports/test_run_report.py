"""The page of a run: whole, readable by itself, with every metric that was recorded."""

import re
import warnings
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from distill_engine.reports import plots
from distill_engine.reports.history import RunHistoryError, read_run
from distill_engine.reports.run_report import run_report
from distill_engine.telemetry.jsonl import JsonlSink
from distill_engine.telemetry.metrics import terms
from distill_engine.telemetry.sinks import Record

VOID = {"meta", "br", "img", "link", "input", "hr", "wbr"}
LOADS = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps texts, headings, SVG counts and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.fetched, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [v for k, v in attributes if k in LOADS and v and not v.startswith(("#", "data:"))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_stands_alone(text):
    page = Page(text)
    assert page.fetched == []
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in text and "url(http" not in text
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_every_recorded_metric_is_plotted_and_in_the_table(run_folder, text):
    history = read_run(run_folder)
    drawn = " ".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    titles = {unescape(title) for title in re.findall(r"<text[^>]*>([^<]*)</text>", drawn)}
    for name in history.names():
        assert f"<td>{name}</td>" in text
        assert plotted(name, history) <= titles, name
    for term in terms():
        assert f"{term.replace('_', ' ')} (raw)" in titles


def plotted(name, history) -> set[str]:
    """Titles of plots and names of lines in which a metric must be found."""
    parts = name.split("/")
    if len(set(history.series(name)[1])) == 1 and parts[0] != "valid":
        return set()  # nothing to see: the table says it
    if "layer" in parts:
        return {parts[2].replace("_", " ")}
    if parts[-1] == "weighted":
        return {"weighted terms", "share of the loss", parts[2].replace("_", " ")}
    if parts[1].startswith("gradient_"):
        title = "gradient norm by term" if parts[1].endswith("norm") else "share of the gradient"
        return {title, parts[2].replace("_", " ")}
    if parts[:2] == ["time", "share"]:
        return {"where a step's time goes", parts[2]}
    if name in ("valid/teacher_ppl", "valid/teacher_token_accuracy"):
        return {parts[1].removeprefix("teacher_"), "teacher"}  # in the student's plot
    if parts[1] in ("chat", "sums"):
        return {f"{parts[2]} by dataset", parts[1]}
    if parts[1] == "term":
        return {f"{parts[2].replace('_', ' ')} (raw)", parts[0]}
    kinds = ("train", "valid")
    both = parts[0] in kinds and {f"{kind}/{parts[1]}" for kind in kinds} <= set(history.names())
    return {parts[1], parts[0]} if both else {name}


def test_the_best_validation_is_marked(text, valid_values):
    marked = re.findall(r"<tr class=best><td>(\d+)</td>", text)
    assert marked == [str(min(range(50, 401, 50), key=lambda step: valid_values(step)["valid/ppl"]))] != ["400"]


def test_the_last_sample_replies_stand_beside_gold_teacher_and_the_first_ones(text):
    table = next(found for found in re.findall(r"<table>.*?</table>", text, flags=re.DOTALL) if "&lt;g1&gt;" in found)
    cells = [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", table)]
    assert cells == [
        *("dataset", "context", "reference", "teacher", "student, step 50", "student, step 400"),
        *("chat", "c0", "<g0>", "t0", "s0 50", "s0 400"),
        *("chat", "c1", "<g1>", "t1", "s1 50", "s1 400"),
    ]


def test_one_round_of_samples_is_shown_once(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(Record("samples", 9, 1.0, rows=({"reference": "g", "student": "only"},)))
    sink.close("finished")
    assert run_report(read_run(tmp_path)).count("only") == 1


def test_what_people_wrote_is_text_not_markup(text):
    assert "started &lt;here&gt; &amp; now" in text and "<here>" not in text


def test_the_state_of_the_run_is_said(text):
    words = " ".join(Page(text).texts)
    assert "finished at step 400 of 400 after 80 s of training" in words
    assert "best ppl" in words


def test_a_short_run_of_a_foreign_version_is_still_reported(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: old\nunknown: 1\n", encoding="utf-8")
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(Record("train", 1, 1.0, {"train/total": float("nan"), "was/once": 1.0}))
    sink.close("failed")
    text = run_report(read_run(tmp_path))
    assert "stopped at step 1 after 1 s" in text and "unknown: 1" in text
    assert "<td>train/total</td>" in text and "was/once" not in text


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(RunHistoryError, match=r"is no run folder: it holds no metrics.jsonl"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(RunHistoryError, match="has no record yet"):
        run_report(read_run(tmp_path))


def test_the_same_numbers_give_the_same_plot():
    steps = [1, 2, 3]
    assert plots.lines("a", {"x": (steps, [1.0, 2.0, 9.0])}) == plots.lines("a", {"x": (steps, [1.0, 2.0, 9.0])})


def test_a_plot_without_lines_is_drawn_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "<svg" in plots.lines("nothing yet", {}, wide=True)


def test_long_lines_are_thinned_and_keep_their_end():
    steps = list(range(10_000))
    kept, values = plots._thinned(steps, [float(step) for step in steps])
    assert len(kept) <= 1501 and kept[0] == 0 and kept[-1] == 9999 and values[-1] == 9999.0


def test_the_frontier_is_what_nobody_beats():
    points = [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, 1.0), (2.0, 3.0)]
    assert plots._not_beaten(points) == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]
