"""The page in a real browser: headless Chromium opens it from disk, as a reader does.

Needs chromium and chromedriver (Debian: chromium, chromium-driver) and the extra
`page`; `make test-page` runs it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_attr.report.page import render_page
from tests.report._sample import HOSTILE, report

pytestmark = pytest.mark.slow
selenium = pytest.importorskip(
    "selenium", reason="needs selenium: pip install -e .[page]"
)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "needs chromium and chromedriver (Debian: chromium, chromium-driver)"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        *FLAGS.split(),
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(report()), encoding="utf-8")
    return path


@pytest.fixture
def opened(driver: Any, page: Path) -> Any:
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    driver.get("about:blank")  # the same address again would scroll to where it was
    driver.get(page.as_uri())
    return driver


def find(driver: Any, css: str) -> list[Any]:
    return driver.find_elements("css selector", css)


def column(driver: Any, name: str) -> list[str]:
    """What a column of the first table of latents sorts by, in the order shown."""
    return driver.execute_script(
        "const t = document.querySelector('.sortable'), heads = "
        "[...t.tHead.rows[0].cells];"
        "const k = heads.findIndex(h => h.textContent === arguments[0]);"
        "return [...t.tBodies[0].rows].filter(r => !r.hidden).map(r => "
        "r.cells[k].dataset.order)",
        name,
    )


def header(driver: Any, name: str) -> Any:
    return next(h for h in find(driver, ".sortable th") if h.text.startswith(name))


def test_it_loads_in_peace_and_fetches_nothing(opened) -> None:
    errors = [
        e for e in opened.get_log("browser") if e["level"] in ("SEVERE", "WARNING")
    ]
    assert errors == []
    sent = [json.loads(e["message"])["message"] for e in opened.get_log("performance")]
    urls = [
        m["params"]["request"]["url"]
        for m in sent
        if m["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith("file:") for url in urls)  # the log does see requests
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


def test_what_is_planted_shows_as_text_and_does_not_run(opened) -> None:
    for part in find(opened, "details"):
        opened.execute_script("arguments[0].open = true", part)
    time.sleep(0.3)
    assert opened.execute_script("return typeof window.planted") == "undefined"
    shown = opened.find_element("css selector", "body").text
    for text in (
        HOSTILE[0],
        HOSTILE[4],
        HOSTILE[5],
        "⟨U+202E⟩right to left⟨U+202C⟩",
        "zero⟨U+0000⟩byte",
    ):
        assert text in shown
    assert find(opened, "script:not([type])") == find(
        opened, "body > script:not([type])"
    )
    assert len(find(opened, "script")) == 2
    assert (
        find(
            opened,
            "iframe, svg svg, [onerror], [onload], a[href^=javascript], svg style, foreignObject",
        )
        == []
    )


def test_even_a_script_that_got_in_would_not_run(opened) -> None:
    opened.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.planted = "
        "5'; document.body.append(s);"
        "const i = document.createElement('img'); i.src = "
        "'https://example.invalid/x.png'; document.body.append(i)"
    )
    assert opened.execute_script("return typeof window.planted") == "undefined"
    assert (
        sum(
            "Content Security Policy" in e["message"] for e in opened.get_log("browser")
        )
        >= 2
    )


@pytest.mark.parametrize("name", ["latent", "Δ", "toward"])
def test_numbers_sort_as_numbers_with_the_unknown_last(opened, name) -> None:
    for _ in range(2):
        header(opened, name).find_element("css selector", "button").click()
        way = header(opened, name).get_attribute("aria-sort")
        keys = column(opened, name)
        known = [float(k) for k in keys if k]
        assert keys[len(known) :] == [""] * (len(keys) - len(known))
        assert known == sorted(known, reverse=way == "descending")
    assert len(find(opened, "th[aria-sort]")) == 1
    assert name == "latent" or "" in keys


def test_rows_can_be_searched_and_restricted(opened) -> None:
    total = len(column(opened, "latent"))
    find(opened, ".filter-text")[0].send_keys("doctor")
    found = column(opened, "latent")
    assert 0 < len(found) < total
    assert find(opened, ".shown")[0].text == f"{len(found)} of {total} latents"
    find(opened, ".filter-outside")[0].click()
    assert len(column(opened, "latent")) < len(found)
    outside = len(column(opened, "latent"))
    find(opened, ".filter-method")[0].find_element(
        "css selector", "option[value=gradient]"
    ).click()
    shown = opened.execute_script(
        "return [...document.querySelector('.sortable').tBodies[0].rows].filter(r => "
        "!r.hidden).map(r => r.dataset.methods)"
    )
    assert 0 < len(shown) < outside
    assert all("gradient" in methods.split() for methods in shown)


def test_a_point_says_which_latent_it_is(opened) -> None:
    from selenium.webdriver import ActionChains

    dot = find(opened, ".dot[data-latent]")[5]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
    ActionChains(opened).move_to_element(dot).perform()
    card = opened.find_element("id", "card")
    assert card.is_displayed()
    latent = dot.get_attribute("data-latent")
    assert card.text.startswith(f"latent {latent},")
    assert "points" in card.text
    alike = find(opened, f".dot.same[data-case=misalignment][data-latent='{latent}']")
    assert len(alike) == len(
        find(opened, f".dot[data-case=misalignment][data-latent='{latent}']")
    )
    assert find(opened, ".dot.same[data-case=validation]") == []
    ActionChains(opened).move_by_offset(0, -300).perform()
    opened.execute_script(
        "document.querySelector('svg').dispatchEvent(new Event('focusout'))"
    )
    assert not card.is_displayed()


def test_points_are_reached_and_chosen_by_keyboard(opened) -> None:
    from selenium.webdriver.common.keys import Keys

    dots = find(opened, "svg:first-of-type .dot[data-latent]")
    assert len(find(opened, ".panels:first-of-type svg .dot[tabindex='0']")) == len(
        [
            s
            for s in find(opened, "svg")
            if s.find_elements("css selector", ".dot[data-latent]")
        ]
    )
    opened.execute_script("arguments[0].focus()", dots[0])
    opened.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    latent = opened.switch_to.active_element.get_attribute("data-latent")
    assert latent == dots[1].get_attribute("data-latent")
    assert opened.find_element("id", "card").text.startswith(f"latent {latent},")
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert opened.current_url.endswith(f"#misalignment-row-{latent}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen_and_the_scheme_is_the_readers(
    opened, width, scheme
) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    for part in find(opened, "details"):
        opened.execute_script("arguments[0].open = true", part)
    try:
        assert (
            opened.execute_script("return document.documentElement.scrollWidth")
            <= width
        )
        paper = opened.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )
        assert (sum(int(v) for v in paper.strip("rgb()").split(",")) > 384) == (
            scheme == "light"
        )
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_prints_with_everything_opened(opened) -> None:
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert find(opened, "details:not([open])") == []
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert find(opened, "details[open]") == []
    assert len(opened.print_page()) > 10_000
