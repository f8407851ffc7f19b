"""The page of the server in a real browser, as wide as a screen and as narrow as a telephone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from launcher.serve.app import Interface, create_app
from launcher.serve.classify import ClassifyInterface
from launcher.serve.options import ServeOptions
from launcher.serve.segment import SegmentInterface
from launcher.serve.server import listen
from tests.browser import open_browser
from tests.launcher.serve.known import KnownModel, KnownSegmenter, halves, image_of


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(ClassifyInterface(KnownModel())) as url:
        yield url


@pytest.fixture(scope="module")
def segment_url() -> Iterator[str]:
    with served(SegmentInterface(KnownSegmenter())) as url:
        yield url


@contextmanager
def served(interface: Interface) -> Iterator[str]:
    """The address of a server in a thread."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(interface, ServeOptions()), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("width", [1280, 390])
def test_an_image_is_classified(browser: Any, url: str, width: int, tmp_path: Path) -> None:
    page, said, requested = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    (tmp_path / "image.png").write_bytes(image_of(37))
    page.set_input_files("#file", tmp_path / "image.png")
    page.wait_for_selector(".bar")
    assert page.inner_text(".bar span:first-child") == "colour 37"
    assert page.inner_text(".bar span:last-child") == "100.0%"
    assert page.locator(".bar").count() == 5
    assert page.inner_text("#model") == "a model whose answers are known"
    assert page.locator("#maps figure").count() == 1
    colours = """canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, 3, 2).data).join()"""
    drawn = page.locator("#maps canvas").evaluate(colours)
    assert len(set(drawn.split(","))) > 1  # one colour, with its own red, green and blue
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    page.click("#examples button")  # a gray image: class 16 * 2 + 2
    page.wait_for_function("document.querySelector('.bar span').textContent === 'colour 34'")
    (tmp_path / "bad.png").write_bytes(b"<html>")
    page.set_input_files("#file", tmp_path / "bad.png")
    page.wait_for_selector("#error:not([hidden])")
    assert "image 0: " in page.inner_text("#error")
    assert [text for text in said if "422" not in text] == []  # the browser says the status of the bad image
    assert all(address.startswith((url, "data:", "blob:")) for address in requested)
    page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    page.close()


SEEN = """canvas => {
  const paint = canvas.getContext('2d'), seen = (x) => Array.from(paint.getImageData(x, 2, 1, 1).data);
  return [canvas.width, canvas.height, seen(0), seen(1), seen(2), seen(7)];
}"""
PINK, GREEN, NOTHING = [0xFF, 0x33, 0xE6, 255], [0x3C, 0xFF, 0x33, 255], [0, 0, 0, 0]  # of classes 3 and 7


@pytest.mark.parametrize("width", [1280, 390])
def test_the_classes_of_pixels_lie_over_the_image(
    browser: Any, segment_url: str, width: int, tmp_path: Path
) -> None:
    page, said, requested = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(segment_url)
    (tmp_path / "image.png").write_bytes(halves(3, 7))
    page.set_input_files("#file", tmp_path / "image.png")
    page.wait_for_selector("#shares button")
    rows = [row.split("\n") for row in page.locator("#shares button").all_inner_texts()]
    assert rows == [["red 7", "75.0%"], ["red 3", "25.0%"]]
    drawn = page.locator("#map").evaluate(SEEN)
    assert drawn == [8, 5, PINK, PINK, GREEN, GREEN]
    assert page.locator("#image").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
    boxes = [page.locator(place).bounding_box() for place in ("#image", "#map")]
    assert boxes[0] == pytest.approx(boxes[1], abs=0.5)  # one over the other
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.is_hidden("#classes")

    assert page.locator("#map").evaluate("map => map.style.opacity") == "0.6"
    page.locator("#opacity").fill("25")
    assert page.locator("#map").evaluate("map => map.style.opacity") == "0.25"
    assert page.inner_text("#shown") == "25%"
    page.locator("#stack").hover(position={"x": 2, "y": boxes[0]["height"] / 2})
    assert page.inner_text("#under") == "red 3 at 0, 2"
    page.click("#shares button >> nth=1")  # this class alone
    assert page.locator("#map").evaluate(SEEN)[2:] == [PINK, PINK, NOTHING, NOTHING]
    assert page.get_attribute("#shares button >> nth=1", "aria-pressed") == "true"
    page.screenshot(path=tmp_path / f"{width}.png", full_page=True)

    page.click("#examples button")  # all of class 2
    page.wait_for_function("document.querySelector('#shares button').textContent === 'red 2100.0%'")
    (tmp_path / "bad.png").write_bytes(b"<html>")
    page.set_input_files("#file", tmp_path / "bad.png")
    page.wait_for_selector("#error:not([hidden])")
    assert "image 0: " in page.inner_text("#error")
    assert [text for text in said if "422" not in text] == []
    assert all(address.startswith((segment_url, "data:", "blob:")) for address in requested)
    page.close()
