"""The report in a real browser: quiet console, no request, no overflow, working filters, untrusted text inert."""

from __future__ import annotations

import json

import pytest
from fake_runs import summary_table, write_run, write_runs

from sail.report import write_report


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Pages by name: a play of five runs, one run alone, and an empty folder."""
    parent = tmp_path_factory.mktemp("reports")
    (parent / "nothing").mkdir()
    one = write_run(parent / "alone" / "sail-dpr", "sail-dpr", lines=60)
    return {
        "play": write_report(
            write_runs(parent), parent / "play.html", title="Play", summary_table=summary_table()
        ),
        "one": write_report([one], parent / "one.html", title="One"),
        "empty": write_report([parent / "nothing"], parent / "empty.html", title="Empty"),
    }


@pytest.fixture
def open_page(browser, reports):
    """open_page(name, width, scheme) -> page; on leaving, nothing may have been said, requested or thrown."""
    said, pages = [], []

    def opened(name="play", width=1440, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: (
                said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
            ),
        )
        page.goto(reports[name].as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert said == []


def pair_steps(page) -> list[int]:
    return [
        int(text.split()[1])
        for text in page.locator(".pair .head span:text-matches('^step \\\\d')").all_inner_texts()
    ]


def matches(page) -> int:
    return int(page.locator("#count").inner_text().split(" of ")[0].replace(",", ""))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("name", ["play", "one", "empty"])
def test_no_overflow_and_opens_fast(open_page, name, width, scheme):
    page = open_page(name, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = """[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, .legend, pre, svg')
        && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 200))"""
    assert page.evaluate(beyond) == []
    # a second is the aim; the limit leaves room for a busy machine
    assert page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") < 5000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_background(open_page, scheme):
    page = open_page("play", 1440, scheme)
    contrast = """(selector) => {
        const channel = (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map((x) => channel(x / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const node = document.querySelector(selector), style = getComputedStyle(node);
        const under = (e) => getComputedStyle(e).backgroundColor;
        let back = node;
        while (back.parentElement && under(back) === 'rgba(0, 0, 0, 0)') back = back.parentElement;
        const own = light(node instanceof SVGElement ? style.fill : style.color);
        const [a, b] = [own, light(under(back))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    }"""
    for selector in [
        "h1",
        ".tile dt",
        ".tile strong",
        "td small",
        ".chart svg text",
        ".chart p",
        ".reward.up",
        ".answer .text",
    ]:
        assert page.evaluate(contrast, selector) >= 4.5, selector


def test_the_first_screen_answers(open_page):
    page = open_page()
    for tile in page.locator(".tile").all():
        box = tile.bounding_box()
        assert box["y"] + box["height"] < 900
    assert page.locator(".tile").count() == 5


def test_untrusted_text_stays_inert(open_page):
    page = open_page()
    page.locator("[name=text]").fill("<script>")
    assert matches(page) > 0
    assert page.title() == "Play"
    assert "<script>document.title='owned'</script>" in page.locator("#pair-list").inner_text()
    assert page.locator("main img, main script:not([type])").count() == 0


def test_filters(open_page, reports):
    rows = json.loads(reports["play"].with_suffix(".json").read_text(encoding="utf-8"))["pairs"]["rows"]
    page = open_page()
    assert matches(page) == len(rows)
    assert page.locator(".pair").count() == 20
    page.locator("[name=run]").select_option(label="sail-dpp")
    assert matches(page) == sum(r["run"] == 3 for r in rows)
    assert set(page.locator(".pair .tag").all_inner_texts()) == {"dpp"}
    page.locator("[name=run]").select_option("")
    page.locator("[name=route]").select_option("dpr")
    assert matches(page) == sum(r["route"] == "dpr" for r in rows)
    page.locator("[name=source]").select_option("policy")
    assert page.locator("#count").inner_text() == "No pair matches. Widen the filters."
    page.locator("[name=source]").select_option("oracle:gold")
    page.locator("[name=from]").fill("100")
    page.locator("[name=to]").fill("200")
    expected = [r for r in rows if r["route"] == "dpr" and 100 <= r["step"] <= 200]
    assert matches(page) == len(expected)
    page.locator("[name=order]").select_option("late")
    assert pair_steps(page) == sorted((r["step"] for r in expected), reverse=True)[:20]
    page.locator("[name=text]").fill("WILLOW")
    assert matches(page) == sum("willow" in (r["first"] + r["second"]).lower() for r in expected)


def test_least_sure_first_and_show_more(open_page, reports):
    rows = json.loads(reports["play"].with_suffix(".json").read_text(encoding="utf-8"))["pairs"]["rows"]
    page = open_page()
    page.locator("[name=order]").select_option("unsure")
    first = page.locator(".pair .verdict").first.inner_text()
    assert "first wins with 0.50" in first
    page.locator("#more").click()
    assert page.locator(".pair").count() == 40
    assert page.locator("#count").inner_text() == f"{len(rows)} of {len(rows)} pairs match; 40 shown."


def test_an_abstention_and_an_empty_response_are_named(open_page):
    page = open_page("one")
    page.locator("#more").click()
    while page.locator("#more").is_visible():
        page.locator("#more").click()
    assert page.locator(".verdict:has-text('abstained: no verdict in the reply')").count() > 0
    empty = page.locator("#pair-list .text:empty").first
    assert empty.evaluate("(e) => getComputedStyle(e, '::before').content") == '"(empty)"'


def test_pairs_stand_side_by_side_or_stacked(open_page):
    for width, aside in ((1440, True), (360, False)):
        first, second = (
            b.bounding_box() for b in open_page("play", width).locator(".pair .answer").all()[:2]
        )
        assert (abs(first["y"] - second["y"]) < 1) == aside
        assert (second["x"] > first["x"]) == aside


def test_highlighting_a_run(open_page):
    page = open_page()
    button = page.locator(".legend button", has_text="sail-dpr")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator(".chart g.run-0:not(.faded)").count() == 0
    assert page.locator(".chart g.run-4.faded").count() == 0
    button.click()
    assert page.locator(".faded").count() == 0


def test_it_prints(open_page):
    page = open_page("one")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".filters").is_visible()
    assert len(page.pdf()) > 20_000
