"""The Models page in a real browser: no errors, narrow and dark, by keyboard, nothing from another host.

With REFIT_PICTURES=<folder> it leaves screenshots there, of made-up figures; docs/images/shoot.py makes those of the
documentation.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from operators.approval import decision
from tests.dags.live import free_port
from tests.plugins import place, tree
from tests.plugins.browser import BINARY, PATIENCE, WHY_NOT, Page

pytestmark = pytest.mark.skipif(BINARY is None, reason=WHY_NOT)

PICTURES = os.environ.get("REFIT_PICTURES")


class Site:
    """Airflow's app on a port of this machine, and a token of each user."""

    def __init__(self, root: Path) -> None:
        names = tree.write(root, pipelines=12, runs=9)
        tree.going_on(root, "model-004", "manual__now")
        app = place.app(root, names)
        place.start_run("retrain_model-004", "manual__now")
        client = TestClient(app)
        self.tokens = {
            user: client.post("/auth/token", json={"username": user, "password": user}).json()["access_token"]
            for user in place.USERS
        }
        self.url = f"http://127.0.0.1:{free_port()}"
        port = int(self.url.rpartition(":")[2])
        self.server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + PATIENCE
        while not self.server.started:
            assert time.monotonic() < end
            time.sleep(0.05)

    def close(self) -> None:
        self.server.should_exit = True
        self._thread.join(PATIENCE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("published"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with Page() as made:
        yield made


@pytest.fixture
def page(site: Site, browser: Page) -> Page:
    """The browser as a user finds it; a start of its own for each test would take most of the time."""
    browser.login(site.url, site.tokens["olga"])
    browser.size(1280, 900)
    browser.scheme("light")
    browser.errors.clear()
    browser.asked.clear()
    return browser


def keep(page: Page, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png")


PAGES = {
    "list": "/refit/models",
    "model": "/refit/models/model-004",
    "failed": "/refit/models/model-004?run=run-0005",
    "compare": "/refit/models/model-004/compare?run=run-0001&run=run-0009",
    "missing": "/refit/models/%3Cscript%3E",
}


@pytest.mark.parametrize("name", list(PAGES))
def test_every_page_wide_and_narrow_light_and_dark(site: Site, page: Page, name: str) -> None:
    page.open(site.url + PAGES[name])
    keep(page, f"models-{name}")
    light = page.js("getComputedStyle(document.body).backgroundColor")
    page.size(390, 800)
    assert page.js("document.documentElement.scrollWidth") <= 390
    keep(page, f"models-{name}-narrow")
    page.scheme("dark")
    assert page.js("getComputedStyle(document.body).backgroundColor") != light
    page.size(1280, 900)
    keep(page, f"models-{name}-dark")
    said = [e for e in page.errors if "favicon" not in e and not (name == "missing" and "404" in e)]
    assert said == []
    assert all(url.startswith((site.url, "data:")) for url in page.asked)
    assert page.js("window.alerted") is None


def test_a_button_by_keyboard(site: Site, page: Page) -> None:
    page.open(site.url + PAGES["model"])
    for _ in range(30):
        page.key("Tab")
        if page.js("document.activeElement.textContent") == "Retrain":
            break
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") != "none"  # where the focus is, is seen
    page.key("Enter")
    assert page.js("document.querySelector('dialog[open] h2').textContent") == "Retrain"
    keep(page, "models-retrain")
    page.key("Escape")
    assert page.js("document.querySelector('dialog[open]')") is None
    assert page.js("document.activeElement.textContent") == "Retrain"
    page.key("Enter")
    page.js("document.querySelector('dialog[open] button.main').click()")
    # Airflow knows this DAG by name only, so it refuses: what it says is told.
    told = page.until("(t => t.startsWith('Not started') && t)(document.getElementById('notice').textContent)")
    assert "(404" in told


def test_a_viewers_buttons_do_nothing(site: Site, page: Page) -> None:
    page.login(site.url, site.tokens["eve"])
    page.open(site.url + PAGES["model"])
    assert page.js("[...document.querySelectorAll('header button')].every(b => b.disabled && b.title)")
    page.js("document.querySelector('header button').click()")
    assert page.js("document.querySelector('dialog')") is None


QUESTION = r"""- **gate_quantized: pass** mAP is *0\.9* <b>not bold</b>
- run: `r_1` of `plates`

[Report of this run](/refit/report/retrain_model-005/r_1) [elsewhere](//example.org/)"""


def test_a_person_reads_the_question_and_answers_it_with_a_note(site: Site, page: Page) -> None:
    """The Markdown of an approval, with what a class or a file may be named in it; what is written reaches the task."""
    place.start_run("retrain_model-005", "manual__asks", asks=QUESTION)
    page.open(f"{site.url}/refit/models/model-005")
    page.until("document.querySelector('.approval') !== null")
    assert page.js("[...document.querySelectorAll('.approval li')].map(li => li.innerHTML)") == [
        "<b>gate_quantized: pass</b> mAP is *0.9* &lt;b&gt;not bold&lt;/b&gt;",
        "run: <code>r_1</code> of <code>plates</code>",
        '<a href="/refit/report/retrain_model-005/r_1">Report of this run</a> [elsewhere](//example.org/)',
    ]
    page.js("document.querySelector('.approval input').value = 'seen the pictures'")
    page.js("document.querySelector('.approval button.main').click()")
    page.until("document.getElementById('notice').textContent === 'Answered: Approve.'")
    said = decision(place.answer("retrain_model-005"))
    assert (said.approved, said.by, said.note) == (True, "olga (Airflow)", "seen the pictures")


def test_the_progress_moves(site: Site, page: Page) -> None:
    page.open(site.url + PAGES["model"])
    assert "epoch 3 of 12" in page.js("document.getElementById('going-on').textContent")
    train = Path(os.environ["REFIT_PUBLISHED"]) / "model-004" / "progress" / "train.json"
    train.write_text(train.read_text().replace('"epoch": 3', '"epoch": 7'))
    page.until("document.getElementById('going-on').textContent.includes('epoch 7 of 12')")


def test_two_boxes_can_be_compared(site: Site, page: Page) -> None:
    page.open(site.url + PAGES["model"])
    assert page.js("document.querySelector('form[data-two] button[type=submit]').disabled")
    page.js("[...document.querySelectorAll('form[data-two] input')].slice(0, 2).forEach(b => b.click())")
    page.js("document.querySelector('form[data-two] button[type=submit]').click()")
    page.until("document.querySelector('.kind')?.textContent === 'Two runs compared'")
