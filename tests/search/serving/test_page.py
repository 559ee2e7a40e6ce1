"""The page in a real browser: typed in, looked at, walked by keys, on a phone. Skipped where there is no Chromium."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

import harvest
from harvest.data.miniworld import make_clip, render
from harvest.data.video import read_clip

from ..conftest import SEGMENTATION, WORLD, write_long
from .test_server import served

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

SEEN = "a cyan square turning clockwise"
UNSEEN = "a black dog running in the snow"
ELSEWHERE = [
    f"{who} {does}"
    for who in ("a black dog", "the sea", "a man", "two boats", "a tree")
    for does in ("running", "sleeping", "in the snow", "at night", "reading", "by a car", "eating")
]
TOKEN = "a token that is long enough"


@pytest.fixture(scope="module")
def folder(image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of mp4s and of a file that browsers do not play."""
    videos, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("page")
    for number in range(6):
        write_long(videos / f"day {number}.mp4", range(4 * number, 4 * number + 4))
    with av.open(str(videos / "old.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(8))
        stream.width = stream.height = 64
        for picture in render(make_clip(WORLD, "retrieval", 30)[0]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture[:64, :64].copy(), format="rgb24")))
        container.mux(stream.encode(None))
    (videos / "broken.mp4").write_text("no video")
    harvest.Index.build(
        videos, out=out, model=image_model, segmentation=SEGMENTATION, background=ELSEWHERE
    ).close()
    return out


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, opened; fails a test in which it has an error or asks for anything from outside."""
    options = getattr(request, "param", {"viewport": {"width": 1280, "height": 860}})
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))

    def note(said: Any) -> None:
        is_refusal = said.location["url"].endswith("/api/search")  # a browser notes that by itself
        if said.type in ("error", "warning") and not is_refusal:
            wrong.append(said.text)

    page.on("console", note)
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else wrong.append(asked.url),
    )
    page.goto(address)
    page.wait_for_selector(".card")
    yield page
    context.close()
    assert wrong == []


def until(page: Any, condition: str, *, within_s: float = 20.0) -> None:
    """Wait for a condition. (Playwright's own way is a script made from a string, which the page's policy refuses.)"""
    end = time.monotonic() + within_s
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within {within_s} s: {condition}"
        page.wait_for_timeout(30)


def search(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.wait_for_selector(".card .line svg >> visible=true")


def test_a_sentence_finds_moments_as_one_types(page: Any) -> None:
    assert page.inner_text("#status") == "7 videos, 50 seconds, 25 moments"
    page.locator("#text").press_sequentially(SEEN, delay=30)  # without Enter
    page.wait_for_selector(".card .line svg >> visible=true")
    assert re.match(r"\d+ likely moments?, \d+ less so, in \d\.\d\d s", page.inner_text("#status"))
    first = page.locator(".card").first
    assert (
        first.locator(".path").inner_text() == "day 0.mp4"
        and "chance" in first.locator(".score").inner_text()
    )
    assert page.locator("#results .line .hit").count() == page.locator(".card").count()
    assert page.locator(".card.is-fair, .card.is-sure").count() >= 4
    until(page, "[...document.querySelectorAll('.card img')].slice(0, 4).every((i) => i.naturalWidth > 0)")
    assert page.url.endswith("#text=a+cyan+square+turning+clockwise")
    page.reload()
    page.wait_for_selector(".card .line svg")
    assert page.input_value("#text") == SEEN


def test_a_moment_plays_from_its_second(page: Any) -> None:
    search(page, SEEN)
    card = page.locator(".card", has_text="0:04 – 0:06").first
    card.locator(".media").hover()
    until(page, "document.querySelector('.media video')?.currentTime > 4")
    assert page.evaluate("document.querySelector('.media video').currentTime") < 6.2
    card.locator(".media").click()
    until(page, "document.querySelector('#player video').currentTime > 4")
    assert page.locator(".media video").count() == 0  # one sound at a time
    box = page.locator("#player .line").bounding_box()
    page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 10)  # the curve is a way to other seconds
    until(page, "((t) => t > 0.5 && t < 4)(document.querySelector('#player video').currentTime)")
    until(page, "document.querySelector('#player .head').getAttribute('x1') > 50")
    page.keyboard.press("Escape")
    assert not page.locator("#player").is_visible()
    until(page, "document.activeElement.closest('.card') != null")  # a dialog tells of its end a moment later


def test_more_like_this_and_back(page: Any) -> None:
    search(page, SEEN)
    card = page.locator(".card").nth(1)
    name = card.locator(".path").inner_text()
    card.locator(".like").click()
    page.wait_for_selector("#like >> visible=true")
    assert name in page.inner_text("#like") and page.input_value("#text") == ""
    until(page, "!document.querySelector('.score').textContent.includes('chance')")
    page.wait_for_selector(".card .line svg >> visible=true")
    page.go_back()
    until(page, "document.querySelector('.score')?.textContent.includes('chance')")
    assert page.input_value("#text") == SEEN and not page.locator("#like").is_visible()


def test_nothing_like_this(page: Any) -> None:
    page.fill("#text", UNSEEN)
    page.wait_for_selector("#answer >> visible=true")
    assert page.inner_text("#answer h2") == "Nothing like this here"
    assert "of nonsense queries find a moment" in page.inner_text("#answer p")
    assert not page.locator(".card").first.is_visible()
    page.click("#answer button")
    assert page.locator(".card.is-weak").first.is_visible()
    page.fill("#text", "")
    until(page, "document.querySelector('#status').textContent.startsWith('7 videos')")


def test_filters(page: Any) -> None:
    search(page, SEEN)
    page.keyboard.press("Tab")
    page.click("#show-filters")
    page.fill("[name=path]", "day 1*")
    until(page, "[...document.querySelectorAll('.path')].every((p) => p.textContent === 'day 1.mp4')")
    assert page.inner_text("#num-filters") == "1"
    page.fill("[name=min_duration_s]", "3600")
    page.wait_for_selector("#answer >> visible=true")
    assert page.inner_text("#answer p") == "No video meets the filter."
    page.click("#clear-filters")
    page.wait_for_selector("#num-filters", state="hidden")
    page.wait_for_selector(".card .line svg >> visible=true")
    page.fill("[name=without]", SEEN)  # what it finds is what must not be there
    page.wait_for_selector("#answer >> visible=true")
    assert page.locator(".card").count() == 0


def test_a_picture(page: Any, address: str) -> None:
    data = page.request.get(f"{address}api/videos").json()["videos"][2]
    picture = page.request.get(f"{address}api/videos/{data['id']}/thumbnail?time_s=3").body()
    page.set_input_files("#picture", {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": picture})
    page.wait_for_selector("#like >> visible=true")
    assert page.inner_text("#like span") == "like mine.jpg"
    page.wait_for_selector(".card .line svg >> visible=true")
    first = page.locator(".card").first
    assert first.locator(".path").inner_text() == data["path"] and "0:02 – 0:04" in first.inner_text()


def test_keys_alone(page: Any) -> None:
    page.keyboard.press("Escape")
    page.keyboard.type(SEEN)
    page.wait_for_selector(".card .line svg >> visible=true")
    focused = "[...document.querySelectorAll('.media')].indexOf(document.activeElement)"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    place = page.evaluate(focused)
    assert place == 1 + page.evaluate("getComputedStyle(results).gridTemplateColumns.split(' ').length")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#player video').currentTime > 0")
    before = page.inner_text("#player-title")
    page.keyboard.press("n")
    assert page.inner_text("#player-title") != before
    page.keyboard.press("p")
    assert page.inner_text("#player-title") == before
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    page.wait_for_selector("#like >> visible=true")
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    page.wait_for_selector("#like", state="hidden")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Tab")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


def test_what_the_browser_does_not_play_comes_as_a_preview(page: Any) -> None:
    page.click("#show-filters")
    page.fill("[name=path]", "old.avi")
    page.fill("#text", SEEN)
    page.wait_for_selector("#answer >> visible=true")
    page.click("#answer button")
    page.locator(".media").first.click()
    until(page, "document.querySelector('#player video').currentTime > 0.2")
    assert "/preview" in page.get_attribute("#player video", "src")
    assert "a preview of the moment" in page.inner_text("#player .note")


def test_an_error_is_said_and_can_be_tried_again(page: Any) -> None:
    page.route("**/api/search", lambda route: route.abort())
    page.fill("#text", SEEN)
    page.wait_for_selector("#answer.is-error")
    assert "does not answer" in page.inner_text("#answer p")
    busy = {"status": 503, "json": {"error": "Too many requests are waiting: try again in a moment."}}
    page.unroute("**/api/search")
    page.route("**/api/search", lambda route: route.fulfill(**busy))
    page.click("#answer button")
    until(page, "document.querySelector('#answer p').textContent.startsWith('Too many')")
    page.unroute("**/api/search")
    page.click("#answer button")
    page.wait_for_selector(".card .line svg >> visible=true")
    assert not page.locator("#answer").is_visible()


PHONE = {
    "viewport": {"width": 360, "height": 740},
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_in_the_dark(page: Any) -> None:
    search(page, SEEN)
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(wide)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(19, 20, 22)"
    page.tap("#theme")
    assert page.evaluate(background) == "rgb(246, 246, 244)"
    small = "[...document.querySelectorAll('header button')].filter((b) => b.offsetParent && b.offsetHeight < 40).length"
    assert page.evaluate(small) == 0  # for fingers
    page.tap("#show-filters")
    assert page.evaluate(wide)
    page.tap("#show-filters")
    page.locator(".media").first.tap()
    until(page, "document.querySelector('#player video').currentTime > 0")
    box = page.locator("#player").bounding_box()
    assert (box["x"], box["width"]) == (0, 360) and page.evaluate(wide)


SHOTS = [
    ("search", {"viewport": {"width": 1180, "height": 700}}),
    ("search-dark", {"viewport": {"width": 1180, "height": 760}, "color_scheme": "dark"}),
    ("search-phone", {"viewport": {"width": 390, "height": 760}, "is_mobile": True, "has_touch": True}),
]


@pytest.mark.parametrize(("name", "page"), SHOTS, indirect=["page"], ids=[name for name, _ in SHOTS])
def test_screenshots(page: Any, name: str, tmp_path: Path) -> None:
    """Those of the README; HARVEST_SCREENSHOTS=docs/images writes them there."""
    search(page, SEEN)
    if name == "search-dark":
        page.locator(".media").nth(2).click()
        until(page, "document.querySelector('#player video').currentTime > 4.5")
    in_sight = (
        "[...document.images].filter((i) => i.offsetParent && i.getBoundingClientRect().top < innerHeight)"
    )
    until(page, f"{in_sight}.every((i) => i.naturalWidth > 0)")
    path = Path(os.environ.get("HARVEST_SCREENSHOTS", tmp_path)) / f"{name}.png"
    page.screenshot(path=path, animations="disabled", caret="hide")
    shown = read_clip(path, num_frames=1, image_size=64, fit=None).frames.float()
    assert shown.std() > 10  # not an empty page
    is_dark = float(shown.median()) < 100
    assert is_dark is (name == "search-dark")


def test_the_token_is_asked_for_and_leaves_the_address(browser: Any, folder: Path) -> None:
    with served(folder, HARVEST_TOKEN=TOKEN) as (address, _):
        base = address.partition("#")[0]
        asked: list[str] = []
        for start, is_asked in (
            (base, True),
            (f"{base}#token=wrong", True),
            (address.replace(" ", "%20"), False),
        ):
            context = browser.new_context()
            page = context.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.goto(start)
            if is_asked:
                page.wait_for_selector("#door >> visible=true")
                page.fill("#door [type=password]", "wrong")
                page.keyboard.press("Enter")
                until(page, "document.querySelector('#door .note').textContent !== ''")
                page.fill("#door [type=password]", TOKEN)
                page.keyboard.press("Enter")
            page.wait_for_selector(".card")
            assert page.url == base
            until(page, "document.querySelector('.card img').naturalWidth > 0")  # pictures bring it too
            context.close()
        assert all("token" not in url for url in asked)
