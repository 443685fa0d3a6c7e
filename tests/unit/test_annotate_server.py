"""The page's server over real HTTP: who gets in, what is refused, and that a label says what its sender saw."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotators import Person

from sail.annotate.items import Item, shown_left
from sail.annotate.server import PORT, PageServer, kept_token
from sail.annotate.store import Annotations
from sail.errors import ConfigError, MissingExtraError, SailError
from sail.oracles.people import People

ITEMS = [Item.of(f"prompt {number}", f"good {number}", f"bad {number}")[0] for number in range(30)]
TOKEN = "a token that a test can know"


@pytest.fixture
def labels(tmp_path: Path) -> Annotations:
    made = Annotations(tmp_path / "annotations.sqlite")
    made.offer(ITEMS, 1)
    return made


@pytest.fixture
def server(labels: Annotations, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    monkeypatch.setenv("SAIL_ANNOTATE_TOKEN", TOKEN)
    running = PageServer(labels.path, port=0).start()
    yield running
    running.stop()


GOOD = {"Content-Type": "application/json", "X-Sail-Annotate": "1", "X-Sail-Token": TOKEN}


def call(
    server: PageServer, method: str = "POST", path: str = "/api/next", body: Any = None, **changes: str | None
) -> tuple[int, Any, http.client.HTTPMessage]:
    """One request; `changes` replace headers (underscores for dashes), None leaves one out."""
    headers = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    wire = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    text = body if isinstance(body, str | bytes) else json.dumps({"name": "ann"} if body is None else body)
    wire.request(method, path, text, {name: value for name, value in headers.items() if value is not None})
    reply = wire.getresponse()
    content = reply.read()
    wire.close()
    kind = reply.headers.get("content-type", "")
    return reply.status, json.loads(content) if "json" in kind else content.decode(), reply.headers


def test_a_label_means_the_text_that_was_seen(server: PageServer, labels: Annotations) -> None:
    """30 pairs, always the good text, wherever it stands: about half of the time on the left, and every label names it."""
    person, sides = Person(server.link.replace("$SAIL_ANNOTATE_TOKEN", TOKEN.replace(" ", "%20")), "ann"), []
    state = person.next()
    while "pair" in state:
        sides.append("left" if state["pair"]["left"].startswith("good") else "right")
        state = person.label(state["pair"], sides[-1])
    assert 5 < sides.count("left") < 25
    by_hash = {one.hash: one for one in ITEMS}
    given = labels.labels()
    assert len(given) == 30
    for label in given:
        one = by_hash[label.pair]
        assert (one.first if label.verdict == "first" else one.second).startswith("good")
        assert label.shown_left == shown_left("ann", label.pair)


def test_the_swapped_control_fails(server: PageServer, labels: Annotations) -> None:
    """Somebody who always says left agrees with the stored order half of the time only: the order is blind."""
    person = Person(server.link.replace("$SAIL_ANNOTATE_TOKEN", TOKEN.replace(" ", "%20")), "ben")
    state = person.next()
    while "pair" in state:
        state = person.label(state["pair"], "left")
    firsts = [label.verdict for label in labels.labels()].count("first")
    assert 5 < firsts < 25


@pytest.mark.parametrize(
    "changes",
    [
        {"X_Sail_Token": None},
        {"X_Sail_Token": "wrong"},
        {"X_Sail_Token": TOKEN[:-1]},
        {"X_Sail_Token": None, "Cookie": "sail_annotate_1=" + TOKEN.replace(" ", "-")},
        {"X_Sail_Annotate": None},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
    ],
)
def test_others_are_kept_out(server: PageServer, labels: Annotations, changes: dict[str, str | None]) -> None:
    key = "k" * 16
    body = {"name": "ann", "pair": ITEMS[0].hash, "verdict": "left", "seconds": 1, "key": key}
    status, answer, _ = call(server, path="/api/label", body=body, **changes)
    assert status == 403
    assert TOKEN not in json.dumps(answer)
    assert labels.labels() == []
    assert call(server, path="/api/label", body=body)[0] == 200  # the same without the change is taken
    assert len(labels.labels()) == 1


def test_the_page_needs_the_token_and_sets_a_careful_cookie(server: PageServer) -> None:
    assert call(server, "GET", "/", X_Sail_Token=None)[0] == 403
    assert call(server, "GET", "/?token=wrong", X_Sail_Token=None)[0] == 403
    status, page, headers = call(server, "GET", f"/?token={TOKEN.replace(' ', '%20')}", X_Sail_Token=None)
    assert status == 200
    assert TOKEN not in page
    cookie = headers["set-cookie"]
    assert cookie.startswith(f"sail_annotate_{server.port}=")  # a cookie knows no port, so its name does
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert call(server, "GET", "/", X_Sail_Token=None, Cookie=cookie.partition(";")[0])[0] == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    for name in ("page.css", "page.js"):
        assert call(server, "GET", f"/{name}", X_Sail_Token=None)[0] == 200
    assert call(server, "GET", "/../store.py")[0] == 404
    assert call(server, "GET", "/api/next")[0] == 405


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("next", "no JSON", 400),
        ("next", "[]", 400),
        ("next", "[" * 9000, 400),
        ("next", {}, 400),
        ("next", {"name": ""}, 400),
        ("next", {"name": "x" * 61}, 400),
        ("next", {"name": "a\u202eb"}, 400),
        ("next", {"name": ["ann"]}, 400),
        ("next", {"name": "ann", "more": "x" * 20_000}, 413),
        (
            "label",
            {"name": "ann", "pair": ITEMS[0].hash, "verdict": "first", "seconds": 1, "key": "k" * 16},
            400,
        ),
        (
            "label",
            {"name": "ann", "pair": ITEMS[0].hash, "verdict": ["left"], "seconds": 1, "key": "k" * 16},
            400,
        ),
        (
            "label",
            {"name": "ann", "pair": ITEMS[0].hash, "verdict": "left", "seconds": "1", "key": "k" * 16},
            400,
        ),
        ("label", '{"name":"ann","pair":"x","verdict":"left","seconds":NaN,"key":"kkkkkkkkkkkk"}', 400),
        ("label", {"name": "ann", "pair": ITEMS[0].hash, "verdict": "left", "seconds": 1}, 400),
        (
            "label",
            {"name": "ann", "pair": "' OR 1=1 --", "verdict": "left", "seconds": 1, "key": "k" * 16},
            404,
        ),
        ("nothing", {"name": "ann"}, 404),
    ],
)
def test_nonsense_is_refused_and_stores_nothing(
    server: PageServer, labels: Annotations, path: str, body: Any, status: int
) -> None:
    assert call(server, path=f"/api/{path}", body=body)[0] == status
    assert labels.labels() == []
    assert call(server)[0] == 200


def test_only_json_is_read(server: PageServer) -> None:
    assert call(server, Content_Type="text/plain")[0] == 415
    assert call(server, Content_Type="application/x-www-form-urlencoded")[0] == 415
    assert call(server, Content_Type="application/json; charset=utf-8")[0] == 200


def test_names_and_times_are_tidied(server: PageServer, labels: Annotations) -> None:
    body = {"name": "  Ann   B ", "pair": ITEMS[0].hash, "verdict": "left", "seconds": -5, "key": "k" * 16}
    assert call(server, path="/api/label", body=body)[0] == 200
    assert [(label.annotator, label.seconds) for label in labels.labels()] == [("Ann B", 0.0)]


def test_the_summary_follows_every_label_and_undo(server: PageServer, labels: Annotations) -> None:
    labels.offer(ITEMS[:3], 2)
    for who in ("ann", "ben"):
        for one in ITEMS[:3]:
            labels.label(
                who, one.hash, "first" if one is not ITEMS[1] else "second", 3.0, f"{who} {one.hash}"
            )
    found = call(server, path="/api/summary")[1]
    assert found["agreement"]["alpha"] == pytest.approx(1.0)
    assert [one["labels"] for one in found["people"]] == [3, 3]
    labels.undo("ben")
    assert [one["labels"] for one in call(server, path="/api/summary")[1]["people"]] == [3, 2]


def test_ports_and_links(labels: Annotations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAIL_ANNOTATE_TOKEN", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SailError, match="port"):
            PageServer(labels.path, port=other.getsockname()[1]).start()
    first, second = PageServer(labels.path).start(), PageServer(labels.path).start()
    try:
        assert first.port == PORT or first.port > 1023
        assert second.port not in (PORT, first.port)  # the usual port is taken, so a free one is
        assert first.address != second.address
        assert len(first.link.partition("token=")[2]) >= 32
        with socket.socket() as outside:
            outside.settimeout(2)
            mine = socket.gethostbyname(socket.gethostname())
            if not mine.startswith("127."):
                assert outside.connect_ex((mine, first.port)) != 0  # loopback only
    finally:
        first.stop()
        second.stop()
    with pytest.raises(SailError, match="99999"):
        PageServer(labels.path, port=99999).start()


def test_the_token_outlives_the_server(labels: Annotations, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is open while its server is started anew goes on with its cookie."""
    monkeypatch.delenv("SAIL_ANNOTATE_TOKEN", raising=False)
    first = PageServer(labels.path, port=0).start()
    person = Person(first.link, "ann")
    shown = person.next()["pair"]
    first.stop()
    kept = labels.path.with_suffix(".token")
    assert kept.stat().st_mode & 0o777 == 0o600
    second = PageServer(labels.path, port=first.port).start()
    try:
        person.wire.close()
        assert person.label(shown, "left")["noted"] == "saved"
        assert second.link == first.link
    finally:
        second.stop()
    # One that others could have read or written, or that is a link, is not trusted.
    kept.chmod(0o644)
    assert kept_token(labels.path) != first.link.partition("token=")[2]
    assert kept.stat().st_mode & 0o777 == 0o600
    again = kept_token(labels.path)
    assert again == kept_token(labels.path)
    kept.rename(kept.with_suffix(".elsewhere"))
    kept.symlink_to(kept.with_suffix(".elsewhere"))
    assert kept_token(labels.path) != again


def test_a_token_of_ones_own_is_not_repeated(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TOKEN not in server.link
    assert "$SAIL_ANNOTATE_TOKEN" in server.link
    monkeypatch.setenv("SAIL_ANNOTATE_TOKEN", "short")
    with pytest.raises(ConfigError, match="SAIL_ANNOTATE_TOKEN") as told:
        PageServer(server.path)
    assert "short " not in str(told.value).replace("too short ", "")


def test_a_missing_web_server_says_what_to_install(
    labels: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"sail-align\[annotate\]"):
        PageServer(labels.path).start()
    with pytest.raises(MissingExtraError, match="annotate"):
        People(labels.path)  # said when the run is built, not at its first step
    People(labels.path, serve=False)
