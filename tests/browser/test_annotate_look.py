"""The page itself in a real browser: fits, can be read and heard, keeps hostile texts and other sites out."""

from __future__ import annotations

import json

import pytest
from annotate_visits import items, press

from sail.annotate.items import Item

NASTY = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</p></article><iframe srcdoc='<script>top.document.title=1</script>'>",
    "{{constructor.constructor('document.title=1')()}} ${document.title=1} javascript:alert(1)",
    "\u202e evil \u2066 \x00 &lt;b&gt; &amp; \ud800",
    "https://evil.example/<svg onload=document.title=1> " + "unbroken" * 400,
]


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
