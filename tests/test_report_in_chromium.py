"""The page of `report` in headless Chromium: it loads nothing, and reads at every width.

The program is found by $LINQ_ETL_TEST_CHROMIUM or on PATH; .ci/run installs it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from etl.cli.report.page import Page as ReportPage
from etl.db import schema
from etl.db.engine import open_engine, reading
from etl.db.report import read_figures
from tests.support import chromium
from tests.support.chromium import Page
from tests.support.marks import cannot_run
from tests.support.report_rows import fill

pytestmark = pytest.mark.slow

NOW = datetime(2025, 6, 10, 12, 30, tzinfo=UTC)
LABELS = ("<script>alert(1)</script>", "😀" * 300, "\"'><img src=//example.org/x.png>", "שלום 123")
SCREENS = [
    pytest.param(width, dark, media, id=f"{width}-{'dark' if dark else 'light'}-{media}")
    for width, dark, media in (
        (400, False, "screen"),
        (400, True, "screen"),
        (1400, False, "screen"),
        (1400, True, "screen"),
        (800, True, "print"),
    )
]

# Each element with text of its own: the text, the size in pixels as drawn, and the contrast with
# what is behind it.
TEXTS = """
(() => {
  const parse = color => (color.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(each => {
    const part = each / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].filter(each => each.nodeType === 3)
      .map(each => each.textContent.trim()).join("");
    const drawn = element.getBoundingClientRect();
    if (!own || !drawn.width || element.tagName === "title") continue;
    const style = getComputedStyle(element), svg = element.closest("svg");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const ink = light(parse(svg ? style.fill : style.color)), paper = light(behind(element));
    found.push({
      text: own.slice(0, 60), size: parseFloat(style.fontSize) * scale,
      contrast: (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05),
    });
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about 90 days of 200 numbers, with labels that try to break it."""
    folder = tmp_path_factory.mktemp("page")
    engine = open_engine(f"sqlite:///{folder}/linq.db")
    schema.upgrade(engine)
    fill(engine, NOW, numbers=200, days=90, labels=LABELS)
    with reading(engine) as connection:
        figures = read_figures(connection, 90, now=NOW)
    engine.dispose()
    file = folder / "report.html"
    file.write_text(ReportPage(figures, ()).render(), "utf-8")
    return file


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Page]:
    program = chromium.program()
    if program is None:
        cannot_run(f"no Chromium on PATH, and ${chromium.VARIABLE} names none")
    with chromium.browser(program, tmp_path / "profile") as page:
        yield page


@pytest.mark.parametrize(("width", "dark", "media"), SCREENS)
def test_it_reads(report: Path, tab: Page, width: int, dark: bool, media: str) -> None:
    """Nothing is wider than the window, no text is too small or too pale."""
    tab.open(report, width=width, dark=dark, media=media)
    assert tab.value("document.documentElement.scrollWidth") <= width
    tab.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.value("document.documentElement.scrollWidth") <= width
    texts = tab.value(TEXTS)
    assert len(texts) > 1000
    assert [each for each in texts if each["size"] < 10] == []
    assert [each for each in texts if each["contrast"] < 4.5] == []
    is_dark = tab.value("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert is_dark == (dark and media == "screen")


def test_it_loads_nothing_and_complains_of_nothing(report: Path, tab: Page) -> None:
    """No request but for the page itself, also when all is opened and printed; an empty console."""
    tab.open(report, width=1400)
    tab.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.send("Page.printToPDF")["data"]
    requests = [each["request"]["url"] for each in tab.named("Network.requestWillBeSent")]
    assert requests == [report.as_uri()]
    for event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
        assert tab.named(event) == []
    assert tab.named("Page.javascriptDialogOpening") == []


def test_labels_are_text(report: Path, tab: Page) -> None:
    """They make no element, and stay within their cell."""
    tab.open(report, width=400)
    assert tab.value("document.querySelectorAll('script, img, link, iframe').length") == 0
    # What is in closed details is not laid out, and so has no inner text.
    tab.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    labels = tab.value("[...new Set([...document.querySelectorAll('bdi')].map(b => b.innerText))]")
    assert sorted(labels) == sorted([LABELS[0], "😀" * 39 + "…", LABELS[2], LABELS[3]])


def test_the_answer_is_on_the_first_screen(report: Path, tab: Page) -> None:
    """On a telephone too, with a glyph beside the colour."""
    tab.open(report, width=400)
    verdict = "document.querySelector('#trust .verdict')"
    assert tab.value(f"{verdict}.getBoundingClientRect().bottom") < 600
    assert tab.value(f"{verdict}.innerText").split()[:3] == ["▲", "In", "part."]
    assert tab.value("document.title") == "▲ linq-etl report"
