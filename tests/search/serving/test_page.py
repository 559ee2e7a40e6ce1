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
SHARED = Path(__file__).resolve().parents[4] / "shared" / "cases" / "2026-12-01" / "videos"
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
    if SHARED.is_dir():
        for name in ("delayed.mp4", "hevc_with_sound.mp4"):
            shutil.copy(SHARED / name, videos)
    harvest.Index.build(
        videos, out=out, model=image_model, segmentation=SEGMENTATION, background=ELSEWHERE
    ).close()
    return out


@pytest.fixture(scope="module")
def nearest(folder: Path) -> str:
    """The file that the library itself finds first; the model, six steps old, knows nothing."""
    with harvest.Index.open(folder) as index:
        return Path(index.search(SEEN, k=1).hits[0].path).name


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
        is_refusal = "/api/" in said.location["url"]  # a browser notes that by itself
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


def test_a_sentence_finds_moments_as_one_types(page: Any, nearest: str) -> None:
    assert page.inner_text("#status").partition(",")[0] == f"{9 if SHARED.is_dir() else 7} videos"
    page.locator("#text").press_sequentially(SEEN, delay=30)  # without Enter
    page.wait_for_selector(".card .line svg >> visible=true")
    assert re.fullmatch(r"\d+ moments in \d videos", page.inner_text("#status"))
    first = page.locator(".card").first
    assert (
        first.locator(".path").inner_text() == nearest
        and first.locator(".match").inner_text() == "Possible match"
        and "of sentences about nothing here" in first.locator(".match").get_attribute("title")
    )
    paths = page.locator(".card .path").all_inner_texts()
    assert len(set(paths)) == len(paths)  # a card a video
    assert page.locator("#results .line .hit").count() == len(paths)
    until(page, "[...document.querySelectorAll('.card img')].slice(0, 4).every((i) => i.naturalWidth > 0)")
    assert page.url.endswith("#text=a+cyan+square+turning+clockwise")
    page.reload()
    page.wait_for_selector(".card .line svg")
    assert page.input_value("#text") == SEEN


def test_a_moment_plays_from_its_second(page: Any) -> None:
    search(page, SEEN)
    card = page.locator(".card").first
    start_s = int(card.locator(".when").inner_text()[3])  # 0:04 – 0:06
    card.locator(".media").hover()
    until(page, f"document.querySelector('.media video')?.currentTime > {start_s}")
    assert page.evaluate("document.querySelector('.media video').currentTime") < start_s + 2.2
    page.locator(".others button", has_text="0:04 –").first.click()
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
    until(page, "!document.querySelector('.match').textContent")
    page.wait_for_selector(".card .line svg >> visible=true")
    page.go_back()
    until(page, "document.querySelector('.match')?.textContent")
    assert page.input_value("#text") == SEEN and not page.locator("#like").is_visible()


def test_nothing_like_this(page: Any) -> None:
    page.fill("#text", UNSEEN)
    page.wait_for_selector("#answer >> visible=true")
    assert page.inner_text("#answer h2") == "Nothing like this here"
    assert "matches no better" in page.inner_text("#answer p")
    assert not page.locator(".card").first.is_visible()
    page.click("#answer button")
    assert page.locator(".card.is-unlikely").first.is_visible()
    page.fill("#text", "")
    until(page, "document.querySelector('#status').textContent.includes(' videos, ')")


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
    page.reload()
    page.wait_for_selector(".card .line svg >> visible=true")
    assert page.inner_text("#like span") == "like your picture" and "0:02 – 0:04" in first.inner_text()
    until(page, "document.querySelector('#like img').naturalWidth > 0")


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


def test_a_search_right_after_closing_the_player_is_kept(page: Any) -> None:
    page.fill("#text", SEEN)
    page.wait_for_selector(".card .line svg >> visible=true")
    page.locator(".media").first.click()
    until(page, "document.querySelector('#player video').currentTime > 0")
    page.evaluate("""() => {
        const player = document.querySelector("#player");
        player.addEventListener("close", () => document.querySelector(".card button.like").click(), { once: true });
        player.close();
    }""")
    page.wait_for_selector("#like >> visible=true")
    until(page, "location.hash.includes('moment=') && !history.state?.isPlayer")
    page.go_back()
    page.wait_for_selector("#like", state="hidden")
    assert page.input_value("#text") == SEEN


@pytest.mark.parametrize("name", ["old.avi", "hevc_with_sound.mp4"])  # refused; played without a picture
def test_what_the_browser_does_not_play_comes_as_a_preview(page: Any, name: str) -> None:
    if not SHARED.is_dir() and name != "old.avi":
        pytest.skip("no such file here")
    page.click("#show-filters")
    page.fill("[name=path]", name)
    page.fill("#text", SEEN)
    page.wait_for_selector(".card .line svg", state="attached")
    if page.locator("#answer").is_visible():
        page.click("#answer button")
    page.locator(".media").first.click()
    until(page, "document.querySelector('#player video').currentTime > 0.2")
    assert "/preview" in page.get_attribute("#player video", "src")
    assert page.evaluate("document.querySelector('#player video').videoWidth") > 0
    assert "a preview of the moment" in page.inner_text("#player .note")


def test_sixty_clicks_in_a_row(page: Any) -> None:
    """With previews under the mouse, and the player closed in every way: each click plays what was clicked."""
    search(page, SEEN)
    cards = page.locator(".card")
    count = min(4, cards.count())
    for number in range(60):
        card = cards.nth(number % count)
        media = card.locator(".media").bounding_box()
        page.mouse.move(media["x"] + media["width"] / 2, media["y"] + media["height"] / 2)
        if number % 3 == 0:
            page.wait_for_timeout(200)  # the preview begins
        page.mouse.down()
        page.wait_for_timeout(number % 4 * 20)
        page.mouse.up()
        assert page.locator("#player").is_visible(), number
        assert page.inner_text("#player-title").startswith(card.locator(".path").inner_text())
        if number % 3 == 0:
            page.keyboard.press("Escape")
        elif number % 3 == 1:
            page.click("[data-do=close]")
        else:
            page.go_back()
        page.wait_for_selector("#player", state="hidden")
        assert page.input_value("#text") == SEEN


def test_back_closes_the_player_and_returns_to_the_last_search(page: Any) -> None:
    search(page, SEEN)
    page.wait_for_timeout(1600)  # it is looked at
    page.fill("#text", "an orange cross")
    until(page, "document.title.startsWith('an orange')")
    page.wait_for_timeout(1600)
    page.locator(".media >> visible=true").first.click()
    page.keyboard.press("n")
    until(page, "location.hash.includes('play=')")
    page.go_back()
    page.wait_for_selector("#player", state="hidden")
    assert page.input_value("#text") == "an orange cross"
    page.go_back()
    until(page, f"document.querySelector('#text').value === '{SEEN}'")
    page.go_forward()
    until(page, "document.querySelector('#text').value === 'an orange cross'")


def test_a_link_to_a_moment_plays_it(page: Any, browser: Any, nearest: str) -> None:
    search(page, SEEN)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".media").first.click()
    title = page.inner_text("#player-title")
    page.click("[data-do=path]")
    until(page, "document.querySelector('#player .note').textContent === 'Copied the path.'")
    assert page.evaluate("navigator.clipboard.readText()").endswith(nearest)
    page.click("[data-do=link]")
    until(page, "document.querySelector('#player .note').textContent === 'Copied the link.'")
    link = page.evaluate("navigator.clipboard.readText()")
    other = browser.new_page()
    other.goto(link)
    other.wait_for_selector("#player >> visible=true")
    assert other.inner_text("#player-title") == title
    other.keyboard.press("Escape")
    assert other.input_value("#text") == SEEN
    other.close()
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == nearest


def test_a_picture_that_starts_after_the_sound_is_shown_at_its_second(page: Any, address: str) -> None:
    """The brightness of the lower half tells the second: 20 + 22 a second."""
    if not SHARED.is_dir():
        pytest.skip("no such file here")
    videos = page.request.get(f"{address}api/videos").json()["videos"]
    [late] = [video for video in videos if video["path"] == "delayed.mp4"]
    assert late["offset_s"] == 3
    moments = (page.request.get(f"{address}api/moments/{late['id']}.{n}").json() for n in range(9))
    moment = next(one for one in moments if one["start_s"] == 4)
    page.goto("about:blank")
    page.goto(f"{address}#text=a+red+square&play={moment['id']}")
    until(page, "document.querySelector('#player video').currentTime > 7")
    page.evaluate("document.querySelector('#player video').pause()")
    shown_s = page.evaluate("document.querySelector('#player video').currentTime") - 3
    page.wait_for_timeout(300)
    picture = page.locator("#player video").screenshot()
    (path := Path(os.environ.get("TMPDIR", "/tmp")) / f"late-{os.getpid()}.png").write_bytes(picture)
    frames = read_clip(path, num_frames=1, image_size=64).frames[0].float()
    path.unlink()
    brightness = float(frames[:, 36:44, 28:36].mean())  # above the controls
    assert abs(brightness - (20 + 22 * shown_s)) < 25


def test_a_file_that_is_gone_says_so(page: Any, folder: Path) -> None:
    with harvest.Index.open(folder) as index:
        [video] = [video for video in index.videos() if video.path == "day 3.mp4"]
        file = index.path(video.id)
    search(page, SEEN)
    away = file.rename(file.with_suffix(".away"))
    try:
        page.locator(".card", has_text="day 3.mp4").locator(".media").click()
        until(
            page,
            "document.querySelector('#player .note').textContent.includes('day 3.mp4 is not there any more')",
        )
    finally:
        away.rename(file)


def test_examples_and_the_models_limits(page: Any) -> None:
    page.wait_for_selector("#examples button")
    assert "coloured shapes only" in page.inner_text("#warning")
    page.locator("#examples button").last.click()
    page.wait_for_selector("#answer >> visible=true")
    assert page.inner_text("#answer h2") == "Nothing like this here"
    page.go_back()
    page.wait_for_selector("#examples button >> visible=true")


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": width, "height": 800}} for width in (390, 768, 1280)], indirect=True
)
def test_filters_fit(page: Any) -> None:
    page.click("#show-filters")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    cut = "[...document.querySelectorAll('#filters select, #filters button')].filter((e) => e.scrollWidth > e.clientWidth)"
    assert page.evaluate(f"{cut}.length") == 0
    rows = page.evaluate(
        "new Set([...document.querySelectorAll('#filters input')].map((e) => e.getBoundingClientRect().top)).size"
    )
    assert rows == (1 if page.viewport_size["width"] == 1280 else rows)


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


AXE = Path(os.environ.get("HARVEST_AXE", "node_modules/axe-core/axe.min.js"))
"""From `npm install --no-save axe-core`."""


def serious(page: Any) -> list[str]:
    """What axe-core finds wrong with the page as it is, of the impacts that shut people out."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{one['id']}: {one['help']}: {node['html'][:120]}: {node['failureSummary'][:300]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.skipif(
    not AXE.is_file(), reason="no axe-core: npm install --no-save axe-core, or HARVEST_AXE=FILE"
)
@pytest.mark.parametrize(
    "page", [{"color_scheme": "light"}, PHONE], indirect=True, ids=["light", "phone, dark"]
)
def test_nobody_is_shut_out(page: Any) -> None:
    wrong = {"start": serious(page)}
    page.click("#show-filters")
    wrong["filters"] = serious(page)
    page.click("#show-filters")
    search(page, SEEN)
    wrong["hits"] = serious(page)
    page.locator(".card .like").first.click()
    page.wait_for_selector("#like >> visible=true")
    wrong["more like this"] = serious(page)
    page.fill("#text", UNSEEN)
    page.wait_for_selector("#answer >> visible=true")
    wrong["nothing"] = serious(page)
    page.click("#answer button")
    wrong["unlikely"] = serious(page)
    page.locator(".media").first.click()
    until(page, "document.querySelector('#player video').currentTime > 0")
    wrong["player"] = serious(page)
    page.keyboard.press("Escape")
    page.locator("#text").blur()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    wrong["help"] = serious(page)
    page.keyboard.press("Escape")
    page.route("**/api/search", lambda route: route.abort())
    page.fill("#text", SEEN)
    page.wait_for_selector("#answer.is-error")
    wrong["error"] = serious(page)
    assert {state: found for state, found in wrong.items() if found} == {}


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
