"""Labelling in a real browser: keyboard, undo, reloads, several people at once, a run that waits, a killed server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from annotate_visits import KEY, good_side, items, press, said
from annotators import hear_ctrl_c

from sail.annotate import store
from sail.annotate.server import PageServer
from sail.annotate.store import Annotations
from sail.commands.annotate import summarise


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


def test_a_label_outlives_a_token_that_the_server_does_not_know(labels, visit, monkeypatch):
    """The server comes back with another token: the label is kept and said to be unsaved, until the new link was opened."""
    labels.offer(items(2), 1)
    monkeypatch.setenv("SAIL_ANNOTATE_TOKEN", "the-first-token-of-all")
    first = PageServer(labels.path, port=0).start()
    page = visit(f"{first.address}/?token=the-first-token-of-all", quiet=False)  # a browser logs the refusal
    first.stop()
    monkeypatch.setenv("SAIL_ANNOTATE_TOKEN", "another-token-than-that")
    second = PageServer(labels.path, port=first.port).start()
    try:
        page.keyboard.press("a")
        page.locator("#alarm", has_text="not saved yet: the server does not know this page").wait_for()
        assert labels.labels() == []
        page.context.new_page().goto(f"{second.address}/?token=another-token-than-that")
        page.locator("#count", has_text="1 of 2").wait_for()
        assert len(labels.labels()) == 1
        assert page.locator("#alarm").inner_text() == ""
    finally:
        second.stop()


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
