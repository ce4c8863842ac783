"""The page as a person has it: in headless Chromium, at the width of a phone and of a desk, by keyboard and wheel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from inference.labels import Label
from inference.report.figures import CaseDrawing, draw_case
from inference.report.page import PICTURE_SUFFIX, SLICES_SUFFIX, write_page
from inference.report.slices import stack_slices, write_slices
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
    draw_case(CaseDrawing(data, labels, (1.0, 1.0, 1.0), "Case-B"), folder / f"Case-B{PICTURE_SUFFIX}")
    write_slices(stack_slices(data, labels, (1.0, 1.0, 1.0)), folder / f"Case-B{SLICES_SUFFIX}")
    return write_page(record(), folder).as_uri()


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
    """The page, opened anew, its viewer ready."""
    browser.get(page)
    browser.execute_script("document.querySelector('.slices').scrollIntoView()")
    wait_for(browser, "return document.querySelector('.slices').dataset.open === 'yes'")
    return browser


def wait_for(browser: Chrome, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda chrome: chrome.execute_script(script))


def press(browser: Chrome, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def shown_slice(browser: Chrome) -> int:
    return int(browser.execute_script("return document.querySelector('.viewer').getAttribute('aria-valuenow')"))


def order(browser: Chrome) -> list[str]:
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('#table tbody tr'), row => row.cells[0].textContent)"
    )


def test_nothing_is_wider_than_the_window(opened: Chrome) -> None:
    inside, outside = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert outside in WIDTHS.values()
    assert inside <= outside


def test_no_errors_and_no_requests(opened: Chrome, page: str) -> None:
    press(opened, "r")
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    # The log begins with the browser's own first page.
    asked = {request["request"]["url"] for request in requests if request["documentURL"].startswith(page)}
    assert page in asked, "the log must show what is asked for"
    assert {url.partition(":")[0] for url in asked - {page}} <= {"data"}


def test_the_table_sorts_by_keyboard_and_focus_is_seen(opened: Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.querySelector('.scroll').focus()")
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
    assert opened.execute_script(sorted_by) == "WT"


def test_the_viewer_scrolls_by_keys(opened: Chrome) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.querySelector('.viewer').focus()")
    press(opened, Keys.TAB)
    opened.execute_script("document.querySelector('.viewer').focus()")
    style = opened.execute_script("return getComputedStyle(document.querySelector('.viewer')).outlineStyle")
    assert style == "solid"
    first = shown_slice(opened)
    press(opened, Keys.ARROW_UP, Keys.ARROW_UP)
    assert shown_slice(opened) == first + 2
    press(opened, Keys.ARROW_DOWN)
    assert shown_slice(opened) == first + 1
    press(opened, Keys.HOME)
    assert shown_slice(opened) == 1
    press(opened, Keys.PAGE_UP)
    assert shown_slice(opened) == 6


def test_the_viewer_scrolls_by_wheel_and_lets_go_at_its_ends(opened: Chrome) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    viewer = opened.find_element(By.CLASS_NAME, "viewer")
    before, top = shown_slice(opened), opened.execute_script("return window.scrollY")
    origin = ScrollOrigin.from_element(viewer)
    ActionChains(opened).scroll_from_origin(origin, 0, -120).perform()
    wait_for(opened, f"return document.querySelector('.viewer').getAttribute('aria-valuenow') == {before + 3}")
    assert opened.execute_script("return window.scrollY") == top, "the page stays where it is"
    opened.execute_script("arguments[0].focus()", viewer)
    press(opened, Keys.HOME)
    ActionChains(opened).scroll_from_origin(origin, 0, 200).perform()
    wait_for(opened, f"return window.scrollY > {top}")
    assert shown_slice(opened) == 1


def test_regions_can_be_taken_away(opened: Chrome) -> None:
    pixels = """const canvas = document.querySelector('.viewer canvas');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let coloured = 0;
        for (let i = 0; i < data.length; i += 4) coloured += data[i] - data[i + 2] > 60;
        return coloured"""
    opened.execute_script("document.querySelector('.viewer').focus()")
    assert opened.execute_script(pixels) > 100
    press(opened, "r")
    assert opened.execute_script(pixels) == 0


def test_a_picture_can_be_read_and_scrolls_within_its_frame(opened: Chrome) -> None:
    script = """const picture = document.querySelector('.picture'), frame = picture.parentElement;
        const box = frame.getBoundingClientRect();
        return [picture.getBoundingClientRect().width, box.left, box.right, frame.tabIndex]"""
    wide, left, right, tab = opened.execute_script(script)
    assert wide >= 700
    assert 0 <= left < right <= opened.execute_script("return window.innerWidth")
    assert tab == 0
