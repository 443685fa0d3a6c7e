"""A person at the page in a real browser: what there is to label, and what keys and places mean."""

from __future__ import annotations

from sail.annotate.items import Item

KEY = {"left": "ArrowLeft", "right": "ArrowRight"}


def items(count: int) -> list[Item]:
    return [Item.of(f"prompt {number}", f"good {number}", f"bad {number}")[0] for number in range(count)]


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
