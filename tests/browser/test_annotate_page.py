"""The page for people in a real browser: keyboard, reloads, several people at once, a killed server, hostile texts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from annotators import hear_ctrl_c

from sail.annotate import store
from sail.annotate.items import Item
from sail.annotate.server import PageServer
from sail.annotate.store import Annotations
from sail.commands.annotate import summarise

NASTY = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</p></article><iframe srcdoc='<script>top.document.title=1</script>'>",
    "{{constructor.constructor('document.title=1')()}} ${document.title=1} javascript:alert(1)",
    "\u202e evil \u2066 \x00 &lt;b&gt; &amp; \ud800",
    "https://evil.example/<svg onload=document.title=1> " + "unbroken" * 400,
]


def items(count: int) -> list[Item]:
    return [Item.of(f"prompt {number}", f"good {number}", f"bad {number}")[0] for number in range(count)]


@pytest.fixture
def labels(tmp_path):
    made = Annotations(tmp_path / "annotations.sqlite")
    yield made
    made.close()


@pytest.fixture
def server(labels, monkeypatch):
    monkeypatch.delenv("SAIL_ANNOTATE_TOKEN", raising=False)
    running = PageServer(labels.path, port=0).start()
    yield running
    running.stop()


@pytest.fixture
def visit(browser):
    """visit(link, name, ...) -> the page of a person in a context of their own; on leaving, nothing may have been said, thrown or
    asked of any other place than the link's."""
    heard, contexts = [], []

    def opened(link, name="ann", *, width=1440, height=900, scheme="light", quiet=True, **more):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **more
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        if quiet:
            page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        here = urlsplit(link).netloc
        page.on(
            "request", lambda request: heard.append(request.url) if here not in request.url[:40] else None
        )
        page.goto(link)
        if name:
            page.locator("#name").fill(name)
            page.keyboard.press("Enter")
            page.locator("#pair, #message").and_(page.locator(":visible")).wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == []


def press(page, key):
    """Press a key for a verdict and wait until the page shows another pair, or none."""
    before = page.locator("#prompt").inner_text()
    page.keyboard.press(key)
    page.wait_for_function(
        "(before) => document.querySelector('#pair').hidden || document.querySelector('#prompt').innerText !== before",
        arg=before,
    )


def said(page, text):
    page.get_by_role("status").filter(has_text=text).wait_for()


def good_side(page) -> str:
    return "left" if page.locator("#left .text").inner_text().startswith("good") else "right"


KEY = {"left": "ArrowLeft", "right": "ArrowRight"}


def wins(labels) -> list[bool]:
    """Of each standing label with a winner, whether that is the good text."""
    by_hash = labels.items()
    texts = [
        getattr(by_hash[label.pair], label.verdict)
        for label in labels.labels()
        if label.verdict in ("first", "second")
    ]
    return [text.startswith("good") for text in texts]


def test_twenty_pairs_by_keyboard_with_undo_and_a_reload(labels, server, visit):
    labels.offer(items(20), 1)
    page, sides = visit(server.link), []
    for place in range(20):
        sides.append(good_side(page))
        if place == 5:
            wrong = page.locator("#prompt").inner_text()
            press(page, KEY["right" if sides[-1] == "left" else "left"])
            press(page, "u")
            assert page.locator("#prompt").inner_text() == wrong
            assert good_side(page) == sides[-1]  # the same order again
        if place == 9:
            shown = page.locator("#prompt").inner_text(), page.locator("#left .text").inner_text()
            page.reload()
            page.locator("#pair").wait_for()
            assert (page.locator("#prompt").inner_text(), page.locator("#left .text").inner_text()) == shown
        if place == 12:
            press(page, "t")
        elif place == 13:
            press(page, "s")
        elif place % 2:
            press(page, {"left": "a", "right": "b"}[sides[-1]])
        else:
            press(page, KEY[sides[-1]])
    assert page.locator("#message h2").inner_text() == "All pairs are labelled"
    assert page.locator("#count").inner_text() == "20 of 20 labels"
    given = labels.labels()
    assert len(given) == len({label.pair for label in given}) == 20
    assert (
        [label.verdict for label in given].count("tie")
        == [label.verdict for label in given].count("skip")
        == 1
    )
    assert wins(labels) == [True] * 18  # each key meant the text it stood under
    assert 3 < sides.count("left") < 17
    # the mirror of what was seen: if the sides were taken for the stored order, half of the labels would be wrong
    taken_as_stored = [
        (side == "left") == (label.verdict == "first") for side, label in zip(sides, given, strict=True)
    ]
    assert 3 < sum(taken_as_stored) < 17
    assert all(0 < label.seconds < 60 for label in given)


def test_two_people_at_once(labels, server, visit):
    labels.offer(items(12), 2)
    ann, ben = visit(server.link, "Ann"), visit(server.link, "Ben", width=360, height=740)
    for place in range(12):
        press(ann, KEY[good_side(ann)])
        side = good_side(ben)
        press(ben, KEY[side if place % 4 else {"left": "right", "right": "left"}[side]])
    given = labels.labels()
    assert sorted(label.annotator for label in given) == ["Ann"] * 12 + ["Ben"] * 12
    assert sum(wins(labels)) == 12 + 9
    ann.locator("summary").click()
    ann.locator("#people tr").nth(1).wait_for()
    assert ann.locator("#people th").all_inner_texts() == ["Ann", "Ben"]
    # 9 of 12 the same; the page's number is that of the summary
    expected = summarise(labels)["agreement"]
    told = ann.locator("#agreement").inner_text()
    assert f"{expected['alpha']:.2f} [{expected['low']:.2f}, {expected['high']:.2f}], over 12 pairs" in told
    assert 0.3 < expected["alpha"] < 0.7


def test_a_closed_page_gives_its_pair_to_others_and_a_reloaded_one_keeps_it(
    labels, server, visit, monkeypatch
):
    labels.offer(items(1), 1)
    ann = visit(server.link, "Ann")
    ann.reload()
    ann.locator("#pair").wait_for()
    ben = visit(server.link, "Ben")
    assert ben.locator("#message h2").inner_text() == "Nothing left for you"
    monkeypatch.setattr(store, "LEFT_SECONDS", 0.0)
    ann.close()
    ben.locator("#pair").wait_for()
    press(ben, "t")
    assert [label.annotator for label in labels.labels()] == ["Ben"]


def test_hostile_texts_stay_texts(labels, server, visit):
    pairs = [
        Item.of([{"role": NASTY[place - 1], "content": text}], text, NASTY[place - 2] + "!")[0]
        for place, text in enumerate(NASTY)
    ]
    labels.offer(pairs, 1)
    labels.fact("question", NASTY[0])
    page = visit(server.link, NASTY[1], width=360, height=740)
    for _ in pairs:
        assert page.title() == NASTY[0]
        assert page.locator("#work :is(script, img, iframe, svg, b)").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        shown = page.locator("#left .text").evaluate("(e) => e.textContent")
        assert any(shown in (text, text + "!") for text in NASTY) or "\ufffd" in shown
        press(page, "ArrowLeft")
    page.locator("summary").click()
    page.locator("#people tr").wait_for()
    assert page.locator("#people th").inner_text() == " ".join(NASTY[1].split())
    assert len(labels.labels()) == len(NASTY)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_fits_and_can_be_read(labels, server, visit, scheme, width):
    long = "word " * 300 + "\n\n" + "x" * 500
    labels.offer(
        [
            Item.of(
                [{"role": "system", "content": "Be brief."}, {"role": "user", "content": long}], long, ""
            )[0]
        ],
        1,
    )
    page = visit(server.link, None, width=width, scheme=scheme, height=760)
    contrast = """(selector) => {
        const channel = (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map((x) => channel(x / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const node = document.querySelector(selector);
        let back = node;
        while (back.parentElement && getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)') back = back.parentElement;
        const pair = [light(getComputedStyle(node).color), light(getComputedStyle(back).backgroundColor)];
        const [a, b] = pair.sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    }"""

    def check(*selectors):
        page.wait_for_timeout(200)  # colours change over a tenth of a second
        assert page.evaluate("document.documentElement.scrollWidth") == width
        beyond = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5)"
        assert page.evaluate(f"{beyond}.map((e) => e.outerHTML.slice(0, 120))") == []
        for selector in selectors:
            assert page.evaluate(contrast, selector) >= 4.5, selector

    check("#who h1", "#who p", "#who .soft", "#who button", "input")
    page.locator("#name").fill("ann")
    page.locator("#who button").click()
    page.locator("#pair").wait_for()
    page.locator("summary").click()
    check(
        "h1#question",
        "#count",
        ".role",
        "#prompt p",
        ".answer h2",
        ".answer .text",
        "button.verdict",
        "#undo",
        "summary",
    )
    check("#about dd", "#about caption", "#agreement")
    tall = [button.bounding_box()["height"] for button in page.locator("#verdicts button").all()]
    assert min(tall) >= 44  # a thumb's size
    boxes = [page.locator(f"#{side}").bounding_box() for side in ("left", "right")]
    assert (abs(boxes[0]["y"] - boxes[1]["y"]) < 1) == (width == 1440)
    assert (
        page.locator("#right .text, #left .text")
        .filter(has_not_text="word")
        .evaluate("(e) => getComputedStyle(e, '::before').content")
        == '"(an empty answer)"'
    )
    # the buttons are on the screen however long the texts are
    page.evaluate("scrollTo(0, 0)")
    assert page.locator(".verdict").first.bounding_box()["y"] < 760
    page.locator("[data-verdict=tie]").click()
    page.locator("#message").wait_for()
    check("#message h2", "#message p", "#said", "#undo")
    assert labels.labels()[0].verdict == "tie"


def test_for_keyboards_and_screen_readers(labels, server, visit):
    labels.offer(items(4), 1)
    page = visit(server.link, None)
    assert page.evaluate("document.activeElement.id") == "name"
    assert page.get_by_label("Your name or a nickname").is_visible()
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    page.locator("#pair").wait_for()
    assert page.evaluate("document.activeElement.id") == "pair"  # what a screen reader reads next
    assert page.get_by_role("heading", name="Which answer is better?").is_visible()
    for name, keys in (
        ("A is better", "ArrowLeft A"),
        ("Tie", "T"),
        ("B is better", "ArrowRight B"),
        ("Skip", "S"),
        ("Undo", "U"),
    ):
        button = page.get_by_role("button", name=name, exact=True)
        assert button.get_attribute("aria-keyshortcuts") == keys
    for place in ("Prompt", "Verdict"):
        assert page.get_by_role("group", name=place).is_visible()
    assert page.get_by_role("article", name="Answer A").is_visible()
    assert page.get_by_role("progressbar", name="Labels given").is_visible()
    page.get_by_role("button", name="B is better").focus()
    before = page.locator("#prompt").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_function("(b) => document.querySelector('#prompt').innerText !== b", arg=before)
    assert page.get_by_role("status").inner_text() == "Saved: B is better."
    assert page.evaluate("document.activeElement.id") == "pair"
    page.keyboard.press("u")
    page.wait_for_function("(b) => document.querySelector('#prompt').innerText === b", arg=before)
    assert page.get_by_role("status").inner_text() == "Undone. This is the pair again."
    # no key of the browser's own is a verdict, nor is one that is held down
    page.keyboard.press("Control+a")
    page.keyboard.press("Alt+ArrowUp")
    held = "() => document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat: true, bubbles: true}))"
    page.evaluate(held)
    page.wait_for_timeout(300)
    assert len(labels.labels()) == 0
    press(page, "a")
    page.evaluate(held)
    page.wait_for_timeout(300)
    assert len(labels.labels()) == 1


def test_the_name_is_asked_once_and_the_token_leaves_the_address(labels, server, visit):
    labels.offer(items(2), 1)
    page = visit(server.link, "Ann B")
    assert "token" not in page.url
    assert "name=Ann+B" in page.url
    assert page.evaluate("document.cookie") == ""  # no script can read it
    page.reload()
    page.locator("#pair").wait_for()
    assert page.locator("#start").is_hidden()
    stranger = page.context.browser.new_context().new_page()
    assert stranger.goto(server.address).status == 403
    assert "token" in stranger.locator("body").inner_text()
    stranger.context.close()


def test_another_site_cannot_label(labels, server, visit, browser, tmp_path):
    """A form and a script of another origin, in a browser that holds the cookie."""
    labels.offer(items(1), 1)
    page = visit(server.link, "ann")
    body = json.dumps(
        {"name": "ann", "pair": items(1)[0].hash, "verdict": "left", "seconds": 1, "key": "k" * 16}
    )
    evil = page.context.new_page()
    evil.goto("about:blank")
    evil.evaluate(
        """async ([url, body]) => {
            const ask = (mode, headers) => fetch(url, {method: "POST", mode, credentials: "include", headers, body});
            await ask("no-cors", {"Content-Type": "text/plain"}).catch(() => null);
            await ask("cors", {"Content-Type": "application/json", "X-Sail-Annotate": "1"}).catch(() => null);
        }""",
        [f"{server.address}/api/label", body],
    )
    evil.close()
    assert labels.labels() == []


def test_pairs_of_training_come_by_themselves(labels, server, visit):
    labels.fact("kind", "training")
    page = visit(server.link, "ann")
    assert page.locator("#message h2").inner_text() == "Waiting for the next pairs"
    assert page.title() == "Waiting"
    two = items(2)
    labels.ask(two, 1)
    page.locator("#pair").wait_for()
    assert page.title() == "Which answer is better?"
    press(page, "a")
    press(page, "b")
    assert labels.settle([one.hash for one in two]) == 0
    page.keyboard.press("u")
    said(page, "Too late: training has used your last label.")
    assert len(labels.labels()) == 2


def test_a_pair_that_training_gave_up_makes_room(labels, server, visit):
    """The deadline passes while a pair is on the screen: the page notices at its next sign of life, and no label is refused."""
    labels.fact("kind", "training")
    three = items(3)
    labels.ask(three[:2], 1)
    page = visit(server.link, None)
    page.clock.install()
    page.reload()
    page.locator("#name").fill("ann")
    page.keyboard.press("Enter")
    page.locator("#pair").wait_for()
    labels.settle([one.hash for one in three[:2]], late="no label")
    labels.ask(three[2:], 1)
    assert page.locator("#prompt").inner_text() == "prompt 0"
    page.clock.fast_forward(16_000)
    page.locator("#prompt", has_text="prompt 2").wait_for()
    said(page, "Training went on without this pair.")
    labels.settle([three[2].hash], late="no label")
    page.keyboard.press("a")
    said(page, "Training had gone on")
    assert len(labels.labels()) == 1


def start(folder, port, token):
    """`sail annotate pairs.jsonl` as a process of its own, on a known port and with a known token."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sail.cli", "annotate", "pairs.jsonl", "--port", str(port)],
        cwd=folder,
        env={**os.environ, "SAIL_ANNOTATE_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    said = ""
    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    assert token not in said
    return process


@pytest.mark.slow
def test_the_server_is_killed_between_labels_and_started_again(visit, tmp_path):
    """SIGKILL, a label while nobody listens, a new process: the page waits, says so, and sends that label once."""
    rows = [{"prompt": f"prompt {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = "a-token-for-this-test"
    process = start(tmp_path, port, token)
    labels = Annotations(tmp_path / "pairs.annotations.sqlite")
    try:
        page = visit(
            f"http://127.0.0.1:{port}/?token={token}", quiet=False
        )  # a browser logs the refused connection
        for place in range(8):
            if place in (2, 5):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                assert len(labels.labels()) == place
                page.keyboard.press(KEY[good_side(page)])
                page.locator("#alarm", has_text="not saved yet").wait_for()
                page.keyboard.press("t")  # nothing is labelled meanwhile
                process = start(tmp_path, port, token)
                page.locator("#count", has_text=f"{place + 1} of 8").wait_for()
                assert page.locator("#alarm").inner_text() == ""
            else:
                press(page, KEY[good_side(page)])
        assert page.locator("#message h2").inner_text() == "All pairs are labelled"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 0, said
        assert "8 labels are in" in said
    finally:
        process.kill()
        process.wait()
    assert len({label.pair for label in labels.labels()}) == len(labels.labels()) == 8
    assert wins(labels) == [True] * 8
