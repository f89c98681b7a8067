"""The page in Debian's Chromium, as a person uses it: from the first empty view to asking the studied model.

Whatever a test does, nothing may be asked of another machine, and the browser's console must stay clean.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright
from serving import Serving, serving

from nightschool import jobs
from nightschool.adapters import save_adapter
from nightschool.gguf import open_gguf
from nightschool.hub import find_base
from nightschool.lessonbook import Answered, keep_exam
from nightschool.library import remember_text
from nightschool.store import open_store

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run".split()
PHONE, DESKTOP = (360, 740), (1280, 800)
LIMIT_MS = 30_000
STUDY_LIMIT_MS = 200_000
NOTE = "# Boathouse\n\nThe brass key is kept behind the stove. Mira Holt mends the sails in March.\n"
EVIL = "The <img src=x onerror=document.title='evil'> lamp is kept in <b>the shed</b>."
# How dark each text is against what lies under it, as WCAG 2 counts.
CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const color = rgb(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] > 0.99) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const says = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!says || !node.checkVisibility() || node.closest(":disabled, noscript")) continue;
    const [one, two] = [light(rgb(getComputedStyle(node).color)), light(under(node))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (two + 0.05);
    if (ratio < 4.5) found.push(`${node.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
CONTROLS = "button, a, input, select, textarea, [role=img], progress, meter"
NAMELESS = """(controls) => [...document.querySelectorAll(controls)]
  .filter((node) => node.checkVisibility())
  .filter((node) => !node.getAttribute("aria-label") && !node.labels?.length && !node.textContent.trim())
  .map((node) => node.outerHTML)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def server(home) -> Iterator[Serving]:
    with serving(threads=1, nice=0) as server:
        yield server


@contextmanager
def visiting(browser: Browser, server: Serving, *, size=DESKTOP, allowed="^$", **options) -> Iterator[Page]:
    """The page in a fresh browser; `allowed` is what its console may say."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, base_url=server.url, accept_downloads=True, **options
    )
    context.set_default_timeout(LIMIT_MS)
    said, requests = listen(context)
    try:
        page = context.new_page()
        page.goto("/")
        yield page
        page.wait_for_timeout(50)
    finally:
        context.close()
    assert [text for text in said if not re.search(allowed, text)] == []
    strangers = [url for url in requests if not url.startswith((server.url + "/", "blob:" + server.url))]
    assert len(requests) > 10 and strangers == []


def listen(context: BrowserContext) -> tuple[list[str], list[str]]:
    """What the console says from now on, and what is asked for."""
    said: list[str] = []
    requests: list[str] = []
    context.on("console", lambda each: said.append(each.text) if each.type in ("error", "warning") else None)
    context.on("weberror", lambda each: said.append(str(each.error)))
    context.on("request", lambda each: requests.append(each.url))
    return said, requests


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    with visiting(browser, server) as page:
        yield page


def ask(page: Page, text: str) -> str:
    """Send a message and return the whole answer."""
    before = page.locator(".answer .actions").count()
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator(".answer .actions")).to_have_count(before + 1)
    return page.locator(".answer .prose").last.inner_text()


def drop(page: Page, name: str, text: str) -> None:
    """Drop a file onto the view, as a person does with the mouse."""
    data = page.evaluate_handle(
        """([name, text]) => {
          const data = new DataTransfer();
          data.items.add(new File([text], name));
          return data;
        }""",
        [name, text],
    )
    for kind in ("dragover", "drop"):
        page.dispatch_event("#drop", kind, {"dataTransfer": data})


def go(page: Page, view: str) -> None:
    page.get_by_role("navigation").get_by_role("link", name=view).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(view)


# The whole story ----------------------------------------------------------------------------------


@pytest.mark.timeout(600)  # a busy machine trains slowly
def test_a_newcomer_drops_a_file_asks_has_it_studied_and_asks_the_studied_model(page):
    expect(page.get_by_role("heading", name="Nothing said yet")).to_be_visible()
    page.locator("#chat-empty").get_by_role("link", name="Teach").click()
    expect(page.get_by_text("There is nothing to study yet")).to_be_visible()
    expect(page.get_by_role("button", name="Study tonight")).to_be_disabled()
    drop(page, "boathouse.md", NOTE)
    expect(page.get_by_text(re.compile(r"Remembered boathouse\.md in [\d.]+ s"))).to_be_visible()
    expect(page.locator("#sources")).to_contain_text("not studied yet")

    page.get_by_role("link", name="Ask about it").click()
    assert "behind the stove" in ask(page, "Where is the brass key kept?")
    page.get_by_role("button", name="Note 1").click()
    expect(page.locator(".note blockquote")).to_contain_text("Mira Holt mends the sails in March.")

    go(page, "Teach")
    page.get_by_label("Minutes").fill("5")
    expect(page.locator("#plan")).to_contain_text("1 passage of 1 source (all new)")
    expect(page.locator("#plan")).to_contain_text("of the 5 min")
    page.get_by_role("button", name="Study tonight").click()
    watch(page)
    page.get_by_role("link", name="See the exam").click()
    put_to_use(page)
    page.get_by_role("link", name="Chat with it").click()
    expect(page.locator("#who-summary")).to_have_text("ember+notes · memory off")
    page.get_by_role("button", name="New chat").click()
    assert ask(page, "Where is the brass key kept?")
    expect(page.locator(".answer .actions")).to_contain_text("ember+notes")
    forget(page)


def watch(page: Page) -> None:
    """A study is paused, found again after a reload, resumed, and seen to its end."""
    job = page.locator(".job")
    expect(job.locator("[aria-current=step]")).to_be_visible()
    job.get_by_role("button", name="Pause").click()
    expect(job.locator(".tag")).to_have_text("paused", timeout=STUDY_LIMIT_MS)
    page.reload()
    job.get_by_role("button", name="Resume").click()
    expect(page.locator("#now")).to_be_visible()
    expect(job.locator(".tag")).to_have_text("done", timeout=STUDY_LIMIT_MS)
    expect(job.get_by_role("img", name=re.compile("Loss from .* in .* steps"))).to_be_visible()
    job.get_by_text("What happened").click()
    expect(job.locator(".log")).to_contain_text("The job has successfully completed.")
    expect(page.locator("#now")).to_be_hidden()


def put_to_use(page: Page) -> None:
    """The exam's report; a candidate, should it not have passed in a minute, is taken all the same."""
    report = page.locator(".exam")
    expect(report).to_contain_text("Without notes it answers")
    expect(report.locator("dl").first).to_contain_text("perplexity on general text")
    expect(report).to_contain_text("Tokens trained")
    expect(report.locator(".questions > li").first).to_contain_text("Expected:")
    take = report.get_by_role("button", name="Put to use")
    if take.is_visible():
        expect(report.locator(".warning")).to_contain_text("Not put to use:")
        take.click()
        page.get_by_role("dialog").get_by_role("button", name="Put to use").click()
        expect(page.get_by_text("notes is in use now.")).to_be_visible()
    expect(report.locator(".tag").first).to_have_text("in use")


def forget(page: Page) -> None:
    """The source is forgotten, and what learned from it goes."""
    go(page, "Teach")
    expect(page.locator("#sources")).to_contain_text("studied: notes")
    page.get_by_role("button", name="Forget boathouse.md").click()
    dialog = page.get_by_role("dialog", name="Forget boathouse.md?")
    expect(dialog).to_contain_text("notes learned from it and cannot unlearn it")
    dialog.get_by_label("Study what else it knew again").uncheck()
    dialog.get_by_role("button", name="Forget").click()
    expect(page.get_by_text("Forgot boathouse.md. Retired: notes.")).to_be_visible()
    expect(page.locator("#sources")).to_contain_text("Nothing yet.")
    go(page, "Exams")
    expect(page.get_by_text("No exam was sat yet")).to_be_visible()


# Chat ---------------------------------------------------------------------------------------------


def test_the_keyboard_alone_sends_a_chat_and_opens_a_citation(page):
    remember("The brass key is kept behind the stove.", "keys")
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to(page, "#say")
    page.keyboard.type("Where is the brass key kept?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .prose")).to_contain_text("behind the stove")
    assert page.evaluate("document.activeElement.id") == "say"
    expect(page.locator("#spoken")).to_contain_text("behind the stove")
    page.keyboard.press("Shift+Tab")
    tab_to(page, ".cite", key="Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".note blockquote")).to_be_visible()


def tab_to(page: Page, selector: str, *, key: str = "Tab") -> None:
    for _ in range(30):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{selector} is out of reach")


def test_an_answer_can_be_stopped_tried_again_and_its_question_edited(page):
    page.get_by_label("Look things up in my notes").uncheck()
    page.get_by_label("Your message").fill("Tell me a story.")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator(".problem-line, .answer .actions")).to_contain_text(re.compile("stopped", re.I))
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer .actions")).to_contain_text(re.compile(r"^ember · [\d.]+ s"))
    page.get_by_role("button", name="Edit").click()
    page.locator(".editor textarea").fill("Where do you live?")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator(".answer .actions")).to_be_visible()
    page.reload()
    expect(page.locator(".mine .said")).to_have_text(["Where do you live?"])
    expect(page.locator(".answer")).to_have_count(1)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#messages > li")).to_have_count(0)


def test_the_scales_of_adapters_are_what_the_model_is_asked_with(page):
    shelve("home")
    page.reload()
    page.get_by_label("home", exact=False).first.check()
    page.get_by_label("Scale of home").fill("0.5")
    page.get_by_label("Look things up in my notes").uncheck()
    with page.expect_request("**/v1/chat/completions") as caught:
        ask(page, "Hello!")
    assert sent(caught.value)["model"] == "ember+home@0.5"
    assert sent(caught.value)["nightschool"] == {"memory": False}
    page.reload()
    expect(page.locator("#who-summary")).to_have_text("ember+home@0.5 · memory off")


def sent(request: Request) -> dict:
    return json.loads(request.post_data or "{}")


def test_what_notes_and_names_hold_is_shown_as_text_and_never_run(page):
    remember(EVIL, "<i>lamp</i>")
    page.reload()
    assert "<img src=x" in ask(page, "Where is the lamp kept?")
    go(page, "Teach")
    page.locator("#sources").get_by_text("<i>lamp</i>").click()
    expect(page.locator(".passages")).to_contain_text("<b>the shed</b>")
    assert page.locator("main i, main img").count() == 0
    assert page.title() != "evil"


# Exams, models ------------------------------------------------------------------------------------


def test_an_exam_is_shown_question_by_question_and_an_adapter_rolled_back_and_forgotten(page):
    shelve("home.previous", after=0.25)
    shelve("home", after=0.5)
    go(page, "Exams")
    report = page.locator(".exam")
    expect(page.get_by_role("img", name="before 0%, after 50%").first).to_be_visible()
    expect(report.locator(".questions > li")).to_have_count(2)
    report.get_by_label("Still wrong (1)").check()
    expect(report.locator(".questions > li")).to_have_text(
        [re.compile("Who mends the sails.*Wrong: ✗?Josie", re.S)]
    )
    report.get_by_role("button", name="Roll back").click()
    expect(report).to_contain_text("Without notes it answers 25% of the exam")
    report.get_by_role("button", name="Forget home").click()
    page.get_by_role("dialog").get_by_role("button", name="Forget").click()
    expect(page.get_by_text("home is gone.")).to_be_visible()


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_the_longest_figures_of_an_exam_stay_inside_their_row(browser, server, size):
    shelve("home", before=1.0, after=1.0)
    with visiting(browser, server, size=size) as page:
        page.goto("/#exams")
        expect(page.locator(".bars .values").first).to_have_text("100% → 100%")
        assert page.locator(".bars .values").evaluate_all(OVERHANGS) == 0


OVERHANGS = "(all) => all.filter((each) => each.scrollWidth > each.clientWidth).length"


def test_an_adapter_without_an_exam_shows_its_receipt_and_no_marks(page):
    shelve("mine", after=None)
    db = open_store()
    id = jobs.add(db, jobs.FINE_TUNING, name="mine", model="ember", spec={}, state=jobs.VALIDATING).id
    jobs.succeed(db, id, {"adapter": "mine"})
    db.close()
    go(page, "Teach")
    page.get_by_role("link", name="See its receipt").click()
    expect(page.locator(".exam")).to_contain_text("It sat no exam.")
    expect(page.locator(".exam h3")).to_have_text(["Receipt"])


def test_models_says_what_fits_and_hands_out_adapters(page, home, tmp_path):
    shelve("home")
    go(page, "Models & adapters")
    expect(page.locator("#bases")).to_contain_text("8M parameters")
    expect(page.locator("#bases")).to_contain_text("Fits this machine")
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download home as GGUF adapter").click()
    caught.value.save_as(tmp_path / "got.gguf")
    assert caught.value.suggested_filename == "home.gguf"
    assert (tmp_path / "got.gguf").read_bytes() == (home / "adapters" / "home" / "adapter.gguf").read_bytes()


def remember(text: str, name: str) -> None:
    db = open_store()
    remember_text(db, text, name=name)
    db.close()


def shelve(name: str, *, before: float = 0.0, after: float | None = 0.5) -> None:
    """An adapter that changes nothing, with an exam of two questions, or none where `after` is None."""
    file = open_gguf(find_base("ember").path)
    rows, columns = file.tensors["blk.0.attn_q.weight"].shape
    weights = {"blk.0.attn_q.weight": (np.zeros((2, columns), np.float32), np.zeros((rows, 2), np.float32))}
    exam = {"recall_before": before, "recall_after": after, "forgetting": 0.03, "fabrication": 0.0}
    receipt = {"seconds": 61.0, "energy_j": 900.0, "energy_source": "estimated", "cost_eur": 0.0001}
    card = {
        "base": {"name": "ember"},
        "run": name,
        "exam": {} if after is None else exam,
        "receipt": receipt | {"peak_rss_bytes": 10**9, "cpu_s": 60.0},
        "training": {"tokens": 50_000, "tokens_per_s": 820.0},
    }
    adapter = save_adapter(name, weights, alpha=4.0, rank=2, base=file, card=card)
    if after is None:
        return
    answers = [
        Answered("Where is the key?", "stove", "keys", "in a box", "behind the stove", False, True),
        Answered("Who mends the sails?", "Mira Holt", "sails", "a cat", "Josie", False, False),
    ]
    db = open_store()
    keep_exam(db, adapter, answers)
    db.close()


# For everybody ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone_can_be_read_and_names_its_controls(browser, server, scheme):
    remember("The brass key is kept behind the stove.", "a-name-" + "that-goes-on-" * 12)
    shelve("home")
    with visiting(browser, server, size=PHONE, color_scheme=scheme) as page:
        ask(page, "Where is the brass key kept?")
        for view in ("chat", "teach", "exams", "models"):
            page.goto(f"/#{view}")
            expect(page.locator(f"#view-{view} h1")).to_be_visible()
            page.wait_for_load_state("networkidle")
            page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0], view
            assert page.evaluate(CONTRASTS) == [], view
            assert page.evaluate(NAMELESS, CONTROLS) == [], view
        assert page.locator("main h1:visible").count() == 1


def test_the_browser_is_forbidden_what_the_page_never_does(browser, server):
    """The policy is in force: inline scripts do not run, other machines are not asked."""
    with visiting(browser, server, allowed="Content Security Policy|violates") as page:
        policy = page.request.get("/").headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        page.evaluate(
            "document.head.append(Object.assign(document.createElement('script'), {textContent: 'seen = 1'}))"
        )
        assert page.evaluate("typeof seen") == "undefined"
        asked = "fetch('https://192.0.2.1/').then(() => 'answered', (error) => error.name)"
        assert page.evaluate(asked) == "TypeError"
        assert page.evaluate("document.querySelectorAll('[style]:not(textarea)').length") == 0


def test_a_server_with_a_key_is_asked_with_it_after_the_person_gave_it(browser, home):
    with serving(threads=1, api_key="sesame") as server:
        with visiting(browser, server, allowed="401") as page:
            key = page.get_by_label("This server asks for its API key")
            key.fill("open")
            page.get_by_role("button", name="Go on").click()
            expect(page.locator("#key-problem")).to_have_text("That is not this server's API key.")
            key.fill("sesame")
            page.get_by_role("button", name="Go on").click()
            expect(key).to_be_hidden()
            expect(page.locator("#base")).to_have_value("ember")
            assert ask(page, "Hello!")
            assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


def test_what_goes_wrong_is_one_sentence_beside_what_was_done(browser, home):
    with serving(threads=1) as server:
        with visiting(browser, server, allowed="ERR_INTERNET_DISCONNECTED") as page:
            go(page, "Teach")
            drop(page, "broken.pdf", "%PDF-1.7 and nothing more")
            expect(page.locator("#remembered .problem")).to_have_text(
                re.compile(r"^broken\.pdf was left out: it is no PDF")
            )
            page.get_by_role("button", name="Remember").click()
            expect(page.locator("#remember-problem")).to_have_text("Type something first.")
            page.context.set_offline(True)
            page.get_by_label("or type a note").fill("Something.")
            page.get_by_role("button", name="Remember").click()
            expect(page.locator("#remember-problem")).to_contain_text("The server does not answer")
            expect(page.locator("#lost")).to_contain_text("The server does not answer")


def test_the_parts_of_the_page_are_all_that_can_be_fetched(server, browser):
    with visiting(browser, server) as page:
        for path in ("/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fapp.py", "/web/page.py", "/web/"):
            assert page.request.get(path).status == 404
        names = {Path(each).name for each in page.evaluate(LOADED)}
        folder = Path(serving.__code__.co_filename).parent.parent / "src/nightschool/server/web"
        assert {file.name for file in folder.glob("*.*s")} <= names  # no module is left over


LOADED = "performance.getEntriesByType('resource').map((each) => new URL(each.name).pathname)"
