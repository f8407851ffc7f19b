"""The page of the server in a real browser, as wide as a screen and as narrow as a telephone."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from launcher.serve.app import create_app
from launcher.serve.options import ServeOptions
from launcher.serve.server import listen
from tests.browser import open_browser
from tests.launcher.serve.known import KnownModel, image_of


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(KnownModel(), ServeOptions()), log_level="warning"))
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
