"""Both pages in headless Chromium: no error, no request but for the file itself, every plot drawn and to be seen."""

import io
from pathlib import Path

import pytest

from distill_engine.evaluate.latency_rows import LatencyRow
from distill_engine.evaluate.run import Sample
from distill_engine.reports.report_card import ReportCard, card_html

ROOT = Path(__file__).parents[3]
LOOKS = [
    pytest.param({"width": 1200}, id="desktop"),
    pytest.param({"width": 1200, "dark": True}, id="dark"),
    pytest.param({"width": 390}, id="mobile"),
]
# Of each plot: its size on the screen, the elements that draw data or axes, and its words
FIGURES = """
() => [...document.querySelectorAll("figure svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  const drawn = [...svg.querySelectorAll("path, use, image")].filter(one => {
    const size = one.getBoundingClientRect();
    return size.width > 3 || size.height > 3;
  });
  const words = [...svg.querySelectorAll("text")].map(one => one.textContent).join("");
  return {width: box.width, height: box.height, drawn: drawn.length, words: words.length};
})
"""


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright", reason="playwright is not installed")
    import browser as module  # needs playwright

    try:
        module.find_chromium()
    except module.NoBrowserError as error:
        pytest.skip(str(error))
    with module.chromium() as running:
        yield lambda file, **look: module.opened(running, file, **look)


def row(model: str, beams: int, milliseconds: float) -> LatencyRow:
    factors = {"p20": 0.9, "p50": 1.0, "p80": 1.3, "p90": 2.0, "p99": 3.0}
    times = {f"wait_ms_{name}": factor * milliseconds for name, factor in factors.items()}
    return LatencyRow(
        model=model, parameters=1000, device="cpu", dtype="float32", attention="sdpa", kv_cache=True, compiled=False,
        mode="fixed", beams=beams, batch=1, rounds=5, new_tokens=16.0, ms_per_reply=milliseconds,
        tokens_per_second=100.0, weights_mib=1.0, peak_mib=None, **times,
    )  # fmt: skip


def card() -> ReportCard:
    """A teacher and three students with all that is measured, and words that look like markup."""
    names = ["teacher", "shrink_and_finetune", "without_teacher", "<b>small</b>_of-an-unusually-long_name"]
    values = {"ppl": 10.0, "token_acc": 0.4, "teacher_acc": 0.9, "teacher_kl": 0.03125, "f1": 0.2, "bleu": 100 / 3,
              "interdistinct-2": 0.123, "repetition": 0.01, "reply_tokens": 17.25, "chat/ppl": 11.0}  # fmt: skip
    return ReportCard(
        names=names,
        quality={
            name: {**values, "ppl": 10.0 + n, "parameters": 2_696_268_800.0 / (n + 1)} for n, name in enumerate(names)
        },
        latency={name: [row(name, beams, 50.0 * beams / (n + 1)) for beams in (1, 4)] for n, name in enumerate(names)},
        samples=[Sample("chat", "hello <script>alert(1)</script>", "hi", dict.fromkeys(names, "long words " * 20))],
        how={"data": "40 examples"},
        machine={"cpu_cores": 2},
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory, text) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    texts = {"report": text, "card": card_html(card())}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name, plots", [("report", 35), ("card", 1)])
def test_a_page_opens_without_errors_and_shows_its_plots(browser, pages, name, plots, look):
    with browser(pages[name], **look) as (page, seen):
        assert seen.complaints == []
        assert seen.requests == [pages[name].resolve().as_uri()], "nothing but the file itself"
        figures = page.evaluate(FIGURES)
        assert len(figures) >= plots
        for figure in figures:
            assert figure["width"] > 250 and figure["height"] > 80, figure
            assert figure["drawn"] > 5 and figure["words"] > 5, figure
        sizes = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
        assert sizes[0] <= sizes[1], "no sideways scrolling of the page as a whole"


def test_the_overview_fits_a_laptop(browser, pages):
    """No cell lies outside of the window, or of the place that a table may take."""
    with browser(pages["card"], width=1280) as (page, _):
        for width in (1280, 1120):
            page.set_viewport_size({"width": width, "height": 900})
            overview = page.locator(".scroll").first
            assert overview.locator("th").count() == 14
            edges = overview.locator("th, td").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
            room = overview.evaluate("one => one.getBoundingClientRect().right")
            assert max(edges) <= room < width


@pytest.mark.parametrize("dark", [False, True])
def test_plots_have_ink_and_suit_the_page(browser, pages, dark):
    """Pixels of the first plot: mostly the colour of its card, and some of the plot's own."""
    from PIL import Image

    with browser(pages["report"], dark=dark) as (page, _):
        picture = Image.open(io.BytesIO(page.locator("figure").first.screenshot())).convert("L")
    grey = list(picture.getdata())
    background = sum(value < 60 if dark else value > 220 for value in grey) / len(grey)
    ink = sum(value > 120 if dark else value < 160 for value in grey) / len(grey)
    assert 0.7 < background < 0.995
    assert 0.005 < ink < 0.3


def test_what_is_folded_opens(browser, pages):
    with browser(pages["report"]) as (page, _):
        table = page.locator("details table")
        assert not table.is_visible()
        page.locator("summary").first.click()
        assert table.is_visible() and table.locator("tr").count() > 50


def test_a_bad_page_is_noticed(browser, tmp_path):
    """The checks above can fail: a page that asks elsewhere, breaks down, or draws nothing is told from a good one."""
    file = tmp_path / "bad.html"
    file.write_text('<img src="http://127.0.0.1:9/x.png"><figure><svg></svg></figure><script>undefined.x</script>')
    with browser(file) as (page, seen):
        assert [url for url in seen.requests if url.startswith("http")] == ["http://127.0.0.1:9/x.png"]
        said = " ".join(seen.complaints)
        assert "x.png" in said and "undefined" in said
        assert page.evaluate(FIGURES)[0]["drawn"] == 0
