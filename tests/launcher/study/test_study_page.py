"""The report in a real browser, as wide as a screen and as narrow as a telephone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import open_browser

WIDTHS = (1280, 390)
CHARTS = {
    *(f"{metric}-training-capacity" for metric in ("top1", "loss")),
    *(f"{metric}-inference-capacity-k{k}" for metric in ("top1", "loss") for k in (1, 2)),
    *(f"{metric}-{axis}" for metric in ("top1", "loss") for axis in ("active", "total", "flops", "speed")),
    "pareto-images",
    "pareto-flops",
    "dropped-layers",
    "balance-layers",
    "published-speed",
    "fit-experts",
}
SMALLEST_TEXT_PX = 8.0
TEXTS = "nodes => nodes.map(n => parseFloat(getComputedStyle(n).fontSize) * n.getScreenCTM().a)"
OVERLAPS = """figures => figures.flatMap(figure => {
  const boxes = [...figure.querySelectorAll('svg text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const around = figure.querySelector('svg').getBoundingClientRect(), found = [];
  const isOut = box => box.left < around.left - 1 || box.right > around.right + 1;
  boxes.forEach(([text, a], i) => {
    if (isOut(a)) found.push(`${figure.id}: ${text} is cut off`);
    boxes.slice(i + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 2 && high > 4) found.push(`${figure.id}: ${text} over ${other}`);
    });
  });
  return found;
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.mark.parametrize("width", WIDTHS)
def test_report_in_a_browser(reported: Path, browser: Any, width: int) -> None:
    page, said, requested = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto((reported / "report" / "index.html").as_uri())
    assert said == []
    assert [url for url in requested if not url.startswith(("file://", "data:"))] == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    figures = page.locator("figure")
    assert {figures.nth(i).get_attribute("id") for i in range(figures.count())} == CHARTS
    for name in CHARTS:
        box = page.locator(f"#{name} > svg").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] >= 300
        assert box["height"] >= 200
        assert (page.locator(f"#{name} > svg").get_attribute("aria-label") or "").strip()
    assert min(page.locator("figure svg text").evaluate_all(TEXTS)) >= SMALLEST_TEXT_PX
    assert figures.evaluate_all(OVERLAPS) == []
    page.close()


def test_a_wide_table_scrolls_in_itself(reported: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto((reported / "report" / "index.html").as_uri())
    table = page.locator(".scroll").first
    assert table.evaluate("node => node.scrollWidth > node.clientWidth")
    assert table.evaluate("node => node.getBoundingClientRect().right") <= 390
    page.close()
