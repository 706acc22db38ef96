"""A visit to the chat page in a real browser. Every wait is for a thing on the page and has a deadline."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo import ROOT, Demo
from gateways import Door
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

pytestmark = pytest.mark.containers
QUESTION, ANSWER = "What is 348 + 275?", "623"
PASSWORD = "correct horse battery"
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
]  # fmt: skip
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")  # not longer: its event loop would run on in other modules' tests
def browser() -> Iterator[Browser]:
    """Chromium as this machine has it."""
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    assert found, "no Chromium: run scripts/chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield running
        running.close()


def visit(browser: Browser, url: str) -> Page:
    """The page in a profile of its own."""
    page = browser.new_context(locale="en-US", viewport={"width": 1100, "height": 560}, ignore_https_errors=True).new_page()
    page.goto(url, timeout=60_000)
    drawn = page.get_by_role("button").first
    for _ in range(2):
        try:
            expect(drawn).to_be_visible()
            break
        except AssertionError:  # a first load on a busy machine can stay half drawn, or fail in the page itself: as a person would, reload
            page.reload(timeout=60_000)
    expect(drawn).to_be_visible()
    return page


def sign_up(page: Page) -> None:
    """Make the first account."""
    page.get_by_role("button", name="Get started").click()
    page.locator("#name").fill("First Visitor")
    page.locator("#email").fill("first@example.com")
    page.locator("#password").fill(PASSWORD)
    page.get_by_role("button", name="Create Admin Account").click()
    expect(page.locator("#chat-input")).to_be_visible()


def ask(page: Page) -> None:
    """Ask the question in the open chat."""
    page.locator("#chat-input").click()
    page.keyboard.type(QUESTION)
    page.locator("#send-message-button").click()
    expect(page.locator(".chat-user")).to_contain_text(QUESTION)


def thought(page: Page) -> Locator:
    """The button that folds the thought of the last answer."""
    return page.locator(".chat-assistant").last.locator("button[aria-expanded]").filter(has_text=re.compile(r"^\s*Thought"))


def expect_answer(page: Page) -> None:
    """The answer is whole, and its thought is a folded element apart from it."""
    expect(page.locator(".copy-response-button").last).to_be_attached(timeout=120_000)
    expect(page.locator(".chat-assistant").last).to_contain_text(ANSWER)
    expect(thought(page)).to_have_attribute("aria-expanded", "false")


@pytest.mark.fault(39)
def test_first_visit(demo: Demo, browser: Browser, tmp_path: Path) -> None:
    """First account, model without a click, thought apart from the answer, chat kept, second browser shut out."""
    page = visit(browser, demo.page)
    sign_up(page)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#model-selector-0-button, #model-selector-model-button").first).to_contain_text("demo-r1")

    ask(page)
    expect_answer(page)

    answer = page.locator(".chat-assistant").last
    folded = answer.inner_text()
    thought(page).click()
    body = thought(page).locator("xpath=following-sibling::div")
    expect(body.locator(".markdown-prose")).to_contain_text(re.compile(r"\S"))
    assert body.inner_text().strip() not in folded
    assert "<think>" not in answer.inner_text()
    expect(page.get_by_text("You're now logged in.")).to_have_count(0)
    page.screenshot(path=ROOT / "build" / "chat.png", animations="disabled")
    thought(page).click()
    expect(body).to_have_count(0)
    assert answer.inner_text() == folded

    page.reload()
    expect(page.locator(".chat-user")).to_contain_text(QUESTION)
    expect_answer(page)

    expect_shut_out(browser, demo.page)
    demo.compose("restart", "demo-cpu")
    demo.make("demo")
    expect_shut_out(browser, demo.page)
    assert "Sign in with the account that you made" in demo.make("demo").stdout


@pytest.mark.fault(39)
@pytest.mark.fault(40)
def test_fault_39_40_a_new_container_knows_its_visitors_and_its_settings(demo: Demo, browser: Browser, tmp_path: Path) -> None:
    """The page's container is made anew with another setting: who was signed in still is, the setting holds, and the old one when it is put back."""
    page = visit(browser, demo.page)
    sign_in(page) if page.get_by_role("button", name="Sign in").count() else sign_up(page)
    over = tmp_path / "over.json"
    over.write_text(json.dumps({"services": {"demo-cpu": {"environment": {"ENABLE_SIGNUP": "True", "WEBUI_NAME": "Another Name"}}}}))

    anew(demo, over)
    page.reload()
    expect(page.locator("#chat-input")).to_be_visible()
    other = visit(browser, demo.page)
    expect(other.get_by_role("button", name="Sign up")).to_be_visible()
    expect(other).to_have_title(re.compile("Another Name"))
    other.context.close()

    assert demo.make("demo").returncode == 0  # as it was before, for the tests that follow
    page.reload()
    expect(page.locator("#chat-input")).to_be_visible()
    assert page.request.get(f"{demo.page}/api/config").json()["features"]["enable_signup"] is False
    page.context.close()


def test_the_page_through_the_gateway(demo: Demo, browser: Browser, door: Door) -> None:
    """Over TLS, with a web socket, under a name and port that the page was never told of: the owner signs in, asks, and reads the answer."""
    page = visit(browser, f"https://127.0.0.1:{door.port}")
    sign_in(page) if page.get_by_role("button", name="Sign in").count() else sign_up(page)
    with page.expect_websocket(lambda socket: socket.url.startswith(f"wss://127.0.0.1:{door.port}/ws/")):
        page.reload()
    ask(page)
    expect_answer(page)
    page.context.close()


def sign_in(page: Page) -> None:
    """Sign in with the first account."""
    page.locator("#email").fill("first@example.com")
    page.locator("#password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#chat-input")).to_be_visible()


def anew(demo: Demo, file: Path) -> None:
    """Make the page's container anew, with what one more file says, and wait until it answers."""
    result = demo.compose(
        "--file",
        "compose.yaml",
        "--file",
        str(file),
        "--profile",
        "demo-cpu",
        "up",
        "--detach",
        "--no-deps",
        "--force-recreate",
        "--wait",
        "demo-cpu",
    )
    assert result.returncode == 0, result.stderr


def expect_shut_out(browser: Browser, url: str) -> None:
    """A second browser is offered no way to sign up, and the page's own API refuses one."""
    page = visit(browser, url)
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    for words in ("Sign up", "Get started", "Create Admin Account", "Create Account"):
        expect(page.get_by_role("button", name=words)).to_have_count(0)
    account = {"name": "Second", "email": "second@example.com", "password": PASSWORD, "profile_image_url": "/user.png"}
    assert page.request.post(f"{url}/api/v1/auths/signup", data=account).status == 403
    page.context.close()
