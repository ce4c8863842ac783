"""The page as a person has it: in headless Chromium, at the width of a phone and of a desk, by keyboard and wheel."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inference.labels import Label
from inference.report.figures import CaseDrawing, draw_case
from inference.report.page import PICTURE_SUFFIX, VIEWER_SUFFIX, write_page
from inference.report.volumes import viewer_script
from tests.inference.report.test_page import record

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WIDTHS = {"phone": 390, "desk": 1280}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of three cases, one of which has pictures: where it is, as a URL."""
    folder = tmp_path_factory.mktemp("report")
    data = np.zeros((4, 70, 80, 60), np.float32)
    data[:, 5:65, 5:75, 3:57] = np.linspace(100, 400, 54, dtype=np.float32)
    labels = np.zeros(data.shape[1:], np.uint8)
    labels[10:30, 10:30, 20:40] = Label.ET
    maps = np.repeat((labels == Label.ET).astype(np.float32)[None], 3, axis=0) / 2
    picture = draw_case(CaseDrawing(data, labels, (1.0, 1.0, 1.0), "Case-B"))
    (folder / f"Case-B{PICTURE_SUFFIX}").write_bytes(picture)
    script = viewer_script("Case-B", data, labels, (1.0, 1.0, 1.0), {"probabilities": maps})
    (folder / f"Case-B{VIEWER_SUFFIX}").write_bytes(script)
    return write_page(*record(), folder).as_uri()


@pytest.fixture(scope="module", params=WIDTHS)
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium of one width, with logs of its console and of what it asks for."""
    pytest.importorskip("selenium", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    # A window cannot be as narrow as a phone.
    size = {"width": WIDTHS[request.param], "height": 800, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(browser: Chrome, page: str) -> Chrome:
    """The page, opened anew, with the second case's viewer ready."""
    browser.get("about:blank")
    browser.get(f"{page}#case-0")
    wait_for(browser, "return document.querySelector('.viewer')?.dataset.ready === 'yes'")
    wait_for(browser, "return document.querySelector('.readout').textContent !== ''")
    return browser


def wait_for(browser: Chrome, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda chrome: chrome.execute_script(script))


def press(browser: Chrome, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def drag(browser: Chrome, plane: str, across: int, down: int) -> None:
    """From the middle of a plane."""
    from selenium.webdriver import ActionChains

    canvas = canvas_of(browser, plane)
    actions = ActionChains(browser).move_to_element(canvas).click_and_hold().move_by_offset(across, down)
    actions.release().perform()
    press(browser)


def canvas_of(browser: Chrome, plane: str):
    from selenium.webdriver.common.by import By

    return browser.find_element(By.CSS_SELECTOR, f"[data-plane={plane}] canvas")


def choose(browser: Chrome, name: str, value: str) -> None:
    script = f"document.querySelector('input[name={name}][value={value}]').click()"
    browser.execute_script(script)
    press(browser)


def shown_slice(browser: Chrome, plane: str = "axial") -> int:
    return int(canvas_of(browser, plane).get_attribute("aria-valuenow"))


def readout(browser: Chrome) -> str:
    return str(browser.execute_script("return document.querySelector('.readout').textContent"))


def coloured(browser: Chrome, plane: str = "axial") -> int:
    """Pixels of a plane in the yellow of enhancing tumour, or nearly."""
    return int(
        browser.execute_script(
            f"""const canvas = document.querySelector("[data-plane={plane}] canvas");
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let found = 0;
            for (let i = 0; i < data.length; i += 4) found += data[i] - data[i + 2] > 40;
            return found"""
        )
    )


def order(browser: Chrome) -> list[str]:
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('#table tbody tr:not([hidden])'), row => row.cells[0].textContent)"
    )


def test_nothing_is_wider_than_the_window(opened: Chrome) -> None:
    inside, outside = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert outside in WIDTHS.values()
    assert inside <= outside


def test_ids_are_never_broken(opened: Chrome) -> None:
    script = "return [...document.querySelectorAll('td.id a')].map(link => link.getClientRects().length)"
    assert opened.execute_script(script) == [1, 1, 1]


def test_a_visit_has_no_messages_and_asks_for_nothing_outside(browser: Chrome, page: str) -> None:
    from selenium.webdriver.common.by import By

    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page)
    browser.find_element(By.CSS_SELECTOR, "#table th:nth-child(3) button").click()
    browser.find_element(By.CSS_SELECTOR, ".filter input").send_keys("case-b")
    assert order(browser) == ["Case-B"]
    browser.find_element(By.LINK_TEXT, "Case-B").click()
    wait_for(browser, "return document.querySelector('.viewer')?.dataset.ready === 'yes'")
    canvas_of(browser, "coronal").click()
    press(browser, "2", "r", "w", "n")
    browser.execute_script("document.querySelector('.still').open = true")
    wait_for(browser, "return document.querySelector('.picture').complete")
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    asked = {request["request"]["url"] for request in requests}
    folder = page.removesuffix("index.html")
    assert {page, f"{folder}Case-B.case.js", f"{folder}Case-B.png"} <= asked, "the log must show what is asked for"
    assert {url.partition(":")[0] for url in asked if not url.startswith(folder)} <= {"data"}


def test_the_table_sorts_by_keyboard_and_focus_is_seen(opened: Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.querySelector('.table').focus()")
    press(opened, Keys.TAB)
    focused = "const focused = document.activeElement;"
    assert opened.execute_script(f"{focused} return focused.textContent") == "Case"
    assert opened.execute_script(f"{focused} return getComputedStyle(focused).outlineStyle") == "solid"
    press(opened, Keys.ENTER)
    assert order(opened) == ["Case-A", "Case-B", "Case-C"]
    press(opened, Keys.ENTER)
    assert order(opened) == ["Case-C", "Case-B", "Case-A"]
    press(opened, Keys.TAB, Keys.TAB, Keys.SPACE)
    assert order(opened) == ["Case-A", "Case-B", "Case-C"], "by WT, from 20 to 101, the case without it last"
    sorted_by = "return document.querySelector('th[aria-sort]').textContent"
    assert opened.execute_script(sorted_by) == "WT mL"


def test_the_filter_finds_notes_and_says_how_many(opened: Chrome) -> None:
    from selenium.webdriver.common.by import By

    opened.find_element(By.CSS_SELECTOR, ".filter input").send_keys("failed t2f")
    assert order(opened) == ["Case-C"]
    assert opened.find_element(By.CSS_SELECTOR, ".filter output").text == "1 of 3 cases"


def test_one_case_is_open_at_a_time_and_keys_lead_to_the_next(opened: Chrome) -> None:
    shown = "return Array.from(document.querySelectorAll('details.case[open] > summary'), each => each.textContent)"
    assert opened.execute_script(shown) == ["Case-B"]
    press(opened, "n")
    wait_for(opened, "return document.querySelectorAll('.viewer').length === 0")
    assert opened.execute_script(shown) == ["Case-A"]
    press(opened, "n")
    wait_for(opened, "return location.hash === '#case-2'")
    assert "No result: t2f cannot be read" in opened.execute_script(
        "return document.querySelector('details.case[open]').innerText"
    )


def test_a_case_is_scrolled_to_when_it_is_opened_and_buttons_lead_on(opened: Chrome) -> None:
    top = "return Math.round(document.querySelector('details.case[open]').getBoundingClientRect().top)"
    opened.execute_script("scrollTo(0, 0); document.querySelector('#table tbody a').click()")
    assert abs(opened.execute_script(top)) <= 1, "the planes are in the window"
    ends = "return Array.from(document.querySelectorAll('.turn button'), button => button.disabled)"
    assert opened.execute_script(ends) == [True, False]
    opened.execute_script("document.querySelector('.turn [data-step=\"1\"]').click()")
    wait_for(opened, "return document.querySelector('details.case[open] summary').textContent === 'Case-A'")
    opened.execute_script("document.querySelector('.turn a').click()")
    heading = "return Math.round(document.getElementById('cases').getBoundingClientRect().top)"
    assert opened.execute_script(heading) >= 0


def test_planes_scroll_by_keys(opened: Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    canvas = canvas_of(opened, "axial")
    opened.execute_script("document.querySelector('[data-plane=axial] canvas').focus()")
    first = shown_slice(opened)
    press(opened, Keys.ARROW_UP, Keys.ARROW_UP)
    assert canvas.value_of_css_property("outline-style") == "solid"
    assert shown_slice(opened) == first + 2
    press(opened, Keys.ARROW_DOWN)
    assert shown_slice(opened) == first + 1
    press(opened, Keys.HOME)
    assert shown_slice(opened) == 1
    press(opened, Keys.PAGE_UP)
    assert shown_slice(opened) == 6


def test_planes_scroll_by_wheel_and_let_go_at_their_ends(opened: Chrome) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys

    canvas = canvas_of(opened, "axial")
    opened.execute_script("scrollTo(0, 0)")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    before, top = shown_slice(opened), opened.execute_script("return window.scrollY")
    origin = ScrollOrigin.from_element(canvas)
    ActionChains(opened).scroll_from_origin(origin, 0, -120).perform()
    wait_for(opened, f"return document.querySelector('canvas').getAttribute('aria-valuenow') == {before + 3}")
    assert opened.execute_script("return window.scrollY") == top, "the page stays where it is"
    opened.execute_script("arguments[0].focus({preventScroll: true})", canvas)
    press(opened, Keys.HOME)
    opened.execute_script("scrollTo(0, 0)")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    top = opened.execute_script("return window.scrollY")
    ActionChains(opened).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, 100).perform()
    wait_for(opened, f"return window.scrollY > {top}")
    assert shown_slice(opened) == 1


def test_cross_hairs_are_linked(opened: Chrome) -> None:
    before = {plane: shown_slice(opened, plane) for plane in ("axial", "coronal", "sagittal")}
    drag(opened, "axial", 30, -20)
    middle = {plane: shown_slice(opened, plane) for plane in before}
    assert middle["axial"] == before["axial"]
    drag(opened, "axial", 40, -20)
    after = {plane: shown_slice(opened, plane) for plane in before}
    # To the right of the picture is the patient's left, up is the front.
    assert after["sagittal"] < middle["sagittal"]
    assert after["coronal"] == middle["coronal"]
    drag(opened, "axial", 30, -40)
    assert shown_slice(opened, "coronal") > middle["coronal"]


def test_window_and_level_change_by_dragging(opened: Chrome) -> None:
    before = readout(opened)
    choose(opened, "tool", "window")
    position = shown_slice(opened, "sagittal")
    drag(opened, "axial", 60, 20)
    changed = readout(opened)
    assert changed.partition("window")[2] != before.partition("window")[2]
    assert shown_slice(opened, "sagittal") == position
    opened.execute_script("document.querySelector('.reset').click()")
    press(opened)
    assert readout(opened) == before


def test_sequences_switch(opened: Chrome) -> None:
    assert readout(opened).startswith("T1c")
    choose(opened, "sequence", "t2w")
    assert readout(opened).startswith("T2 ")
    opened.execute_script("document.querySelector('canvas').focus()")
    press(opened, "4")
    assert readout(opened).startswith("FLAIR")


def test_regions_are_outlined_filled_or_taken_away(opened: Chrome) -> None:
    outline = coloured(opened)
    choose(opened, "regions", "fill")
    fill = coloured(opened)
    choose(opened, "regions", "off")
    assert coloured(opened) == 0
    assert fill > outline > 20


def test_probabilities_lie_over_the_scan_where_they_were_asked_for(opened: Chrome) -> None:
    choose(opened, "regions", "off")
    assert "probabilities WT 0.50, TC 0.50, ET 0.50" in readout(opened)
    opened.execute_script(
        """const select = document.querySelector(".overlay select");
        select.value = "probabilities ET";
        select.dispatchEvent(new Event("input", {bubbles: true}))"""
    )
    press(opened)
    assert all(coloured(opened, plane) > 100 for plane in ("axial", "coronal", "sagittal"))
    assert opened.execute_script("return getComputedStyle(document.querySelector('.heat')).display") != "none"


def test_a_picture_can_be_read_and_scrolls_within_its_frame(opened: Chrome) -> None:
    opened.execute_script("document.querySelector('.still').open = true")
    wait_for(opened, "return document.querySelector('.picture').complete")
    script = """const picture = document.querySelector('.picture'), frame = picture.parentElement;
        const box = frame.getBoundingClientRect();
        return [picture.getBoundingClientRect().width, box.left, box.right, frame.tabIndex]"""
    wide, left, right, tab = opened.execute_script(script)
    assert wide >= 700
    assert 0 <= left < right <= opened.execute_script("return window.innerWidth")
    assert tab == 0


def test_a_case_whose_data_is_gone_shows_its_picture(browser: Chrome, page: str, tmp_path: Path) -> None:
    source = Path(page.removeprefix("file://")).parent
    shutil.copytree(source, tmp_path / "report")
    (tmp_path / "report" / f"Case-B{VIEWER_SUFFIX}").unlink()
    browser.get((tmp_path / "report" / "index.html").as_uri() + "#case-0")
    wait_for(browser, "return document.querySelector('.failure')?.textContent.includes('cannot be loaded')")
    assert browser.execute_script("return document.querySelector('.still').open")
    browser.get_log("browser")


def test_a_thousand_cases_open_in_three_seconds(browser: Chrome, tmp_path: Path) -> None:
    run, cases = record()
    many = [replace(cases[number % 3], id=f"BraTS-SSA-{number:05d}-000") for number in range(1000)]
    address = write_page(run, many, tmp_path).as_uri()
    browser.get("about:blank")
    begin = time.perf_counter()
    browser.get(address)
    wait_for(browser, "return document.documentElement.classList.contains('scripted')")
    assert len(order(browser)) == 1000
    # Twice the promise: the test may share its processor.
    assert time.perf_counter() - begin < 6
