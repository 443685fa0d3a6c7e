"""The judge's HTTP client against a real server on loopback that misbehaves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_judge import FakeJudge, completion

from sail.errors import ConfigError, MissingExtraError, OracleError
from sail.oracles.calls import Retry
from sail.oracles.judge.client import Client, checked_url, retry_after
from sail.oracles.judge.engine import proxy_of

KEY = "sk-verysecret-0123456789abcdef"
BODY = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


def post(what: str, **options: Any) -> dict[str, Any]:
    with FakeJudge(lambda question, attempt: what, judge=lambda message: "fine") as server:
        client = Client(server.url, **{"timeout": 10.0, **options})
        try:
            return client.post(BODY)
        finally:
            client.close()


def test_a_good_reply() -> None:
    assert post("ok") == completion("fine")


def test_a_good_reply_of_another_content_type() -> None:
    assert post("wrong_type") == completion("fine")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("500", "HTTP 500: it is a test"),
        ("503", "HTTP 503"),
        ("529", "HTTP 529"),
        ("408", "HTTP 408"),
        ("409", "HTTP 409"),
        ("425", "HTTP 425"),
        ("429", "HTTP 429"),
        ("html:502", "HTTP 502: '502 Bad Gateway'"),
        ("html:200", "not JSON: '502 Bad Gateway'"),
        ("garbage", "not JSON"),
        ("json:[1]", "not a JSON object"),
        ("json:" + "[" * 50_000, "not JSON"),
        ("cut_stream", "broke"),
        ("reset", "broke"),
        ("huge", "longer than 2,000,000 bytes"),
    ],
)
def test_what_may_pass_is_a_retry(what: str, reason: str) -> None:
    with pytest.raises(Retry, match=reason) as caught:
        post(what)
    assert caught.value.after is None


@pytest.mark.parametrize("status", [400, 413, 422, 451])
def test_a_refused_request_concerns_its_row_only(status: int) -> None:
    """An infinite wait is longer than any patience: the row is given up without a second attempt."""
    with pytest.raises(Retry, match=f"refused the request, HTTP {status}: too long") as caught:
        post(f"{status}:too long")
    assert caught.value.after == float("inf")


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        (401, "api_key_env"),
        (402, "credit"),
        (403, "oracle.model"),
        (404, "usually ends with /v1"),
        (405, "oracle.url"),
        (501, "oracle.url"),
    ],
)
def test_what_no_repetition_mends_stops_the_run(status: int, way_out: str) -> None:
    with pytest.raises(OracleError, match=way_out):
        post(str(status))


def test_an_empty_account_is_not_waited_for() -> None:
    with pytest.raises(OracleError, match="credit"):
        post("429:insufficient_quota: you are broke")


def test_a_redirect_is_not_followed() -> None:
    with pytest.raises(OracleError, match=r"redirects to http://elsewhere/v1,"):
        post("redirect:http://elsewhere/v1?token=1")


@pytest.mark.parametrize("what", ["hang", "dribble", "dribble_headers", "slow:30"])
def test_the_deadline_is_for_the_whole_call(what: str) -> None:
    start = time.monotonic()
    with pytest.raises(Retry, match=r"within 0\.4 seconds"):
        post(what, timeout=0.4)
    assert 0.3 < time.monotonic() - start < 3.0


def test_a_slow_body_within_the_deadline_is_waited_for() -> None:
    assert post("slow:0.3") == completion("fine")


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Retry, match=rf"cannot connect to 127\.0\.0\.1:{port}: Connect"):
        Client(f"http://127.0.0.1:{port}/v1").post(BODY)


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(Retry, match=r"cannot connect to nowhere\.invalid"):
        Client("http://nowhere.invalid/v1", timeout=5.0).post(BODY)


# ---- Retry-After


def test_retry_after_in_seconds_and_as_a_date() -> None:
    with pytest.raises(Retry) as caught:
        post("limited:2.5")
    assert caught.value.after == 2.5
    with pytest.raises(Retry) as caught:
        post("limited_until:7")
    assert caught.value.after == 7.0  # by the server's clock, which is an hour slow


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("", None), ("0", 0.0), ("-5", 0.0), ("120", 120.0), ("soon", None), ("nan", None), ("inf", None)],
)
def test_values_of_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds


def test_a_date_that_is_past() -> None:
    headers = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert retry_after(headers) == 0.0
    assert retry_after(headers, now=1445412480.0 - 30) == 30.0  # 2015-10-21T07:28:00Z, by `date -d`


# ---- connections


def test_connections_are_used_again() -> None:
    with FakeJudge(judge=lambda message: "fine") as server:
        client = Client(server.url)
        for _ in range(20):
            client.post(BODY)
        assert server.connections == 1


def test_many_threads() -> None:
    with FakeJudge(judge=lambda message: "fine", latency=0.02) as server:
        client = Client(server.url, connections=16)
        with ThreadPoolExecutor(16) as pool:
            assert len(list(pool.map(lambda _: client.post(BODY), range(64)))) == 64
        assert server.connections <= 16
        assert server.most_at_once > 4


def test_a_call_is_told_that_the_client_was_closed() -> None:
    with FakeJudge(lambda question, attempt: "hang") as server:
        client = Client(server.url)
        told: list[str] = []

        def call() -> None:
            try:
                client.post(BODY)
            except Retry as error:
                told.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        while not server.asked:
            time.sleep(0.01)
        client.close()
        thread.join(5)
        assert told == ["the client was closed during the call"]


def test_a_fork_gets_connections_of_its_own() -> None:
    with FakeJudge(judge=lambda message: "fine") as server:
        client = Client(server.url)
        client.post(BODY)
        child = os.fork()
        if child == 0:
            os._exit(0 if client.post(BODY) == completion("fine") else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.post(BODY)


def test_proxies_are_for_other_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("https_proxy", "http://proxy:3129")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_of("http://judge.example/v1") == "http://proxy:3128"
    assert proxy_of("https://judge.example/v1") == "http://proxy:3129"
    for near in (
        "http://127.0.0.1:1/v1",
        "http://localhost/v1",
        "http://[::1]:2/v1",
        "http://inside.example/v1",
    ):
        assert proxy_of(near) is None
    assert post("ok") == completion("fine")


# ---- secrets and settings


def texts_of(error: BaseException) -> str:
    """Everything that a log could show of an error, its causes included."""
    import traceback

    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)


@pytest.mark.parametrize(
    "what",
    ["401", "400", "500", "429", "404", "403"],
)
@pytest.mark.parametrize(
    "form", [KEY, f"Bearer {KEY}", "sk-veryse*****************cdef", KEY[3:20], "%22" + KEY]
)
def test_the_key_is_never_shown(monkeypatch: pytest.MonkeyPatch, what: str, form: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises((Retry, OracleError)) as caught:
        post(f"{what}:Incorrect key {form} given", api_key_env="JUDGE_KEY")
    shown = texts_of(caught.value)
    assert "[key]" in shown
    assert not any(KEY[at : at + 8] in shown for at in range(len(KEY) - 7))
    assert "cdef" not in shown


def test_the_key_is_sent_and_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")
    with FakeJudge(judge=lambda message: "fine") as server:
        client = Client(server.url, api_key_env="JUDGE_KEY")
        client.post(BODY)
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(client) + repr(vars(client)) + repr(vars(client._engine))


def test_without_a_key_none_is_sent() -> None:
    with FakeJudge(judge=lambda message: "fine") as server:
        Client(server.url).post(BODY)
        assert "authorization" not in server.headers[0]


def test_a_missing_key_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(OracleError, match=r"JUDGE_KEY.*is not set"):
        Client("http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "two words")
    with pytest.raises(OracleError, match="holds a space") as caught:
        Client("http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY")
    assert "two words" not in str(caught.value)


def test_the_key_itself_instead_of_its_name() -> None:
    with pytest.raises(ConfigError, match="name of an environment variable") as caught:
        Client("http://127.0.0.1:1/v1", api_key_env=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1"),
    ],
)
def test_addresses(url: str, wanted: str) -> None:
    assert checked_url(url) == wanted


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://x/v1",
        "http://",
        "http://me:pw@host/v1",
        "http://h/v1?api-key=1",
        "http://h/v1?a=1",
        "http://[x/v1",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"oracle\.url") as caught:
        checked_url(url)
    assert "pw" not in str(caught.value).replace("http", "")


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtraError, match=r'pip install "sail-align\[judge\]"'):
        Client("http://127.0.0.1:1/v1")


def test_the_library_is_imported_when_a_client_is_made() -> None:
    code = "import sys, sail.oracles.judge; sys.exit('aiohttp' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_timeout_that_is_none() -> None:
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="timeout"):
            Client("http://127.0.0.1:1/v1", timeout=bad)


def test_asterisks_are_a_masked_key_only_where_they_stand_between_its_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    client = Client("http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY")
    for said in ("***Winner: A***", "f(**a, ***b)", "****", "a***b"):
        assert client.redact(said) == client.redact_error(said) == said
    for masked in (f"{KEY[:5]}*****{KEY[-4:]}", f"{KEY[:7]}***", f"***{KEY[-3:]}."):
        assert client.redact_error(f"key {masked}").rstrip(".") == "key [key]"
    assert client.redact(KEY) == client.redact_error(KEY) == "[key]"


@pytest.mark.parametrize("room", [280, 290, 296, 299])
def test_a_key_at_the_edge_of_what_is_shown_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Cut first, its beginning would no longer be known as a piece of it."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises((Retry, OracleError)) as caught:
        post(f"500:{'x ' * (room // 2)}{KEY}", api_key_env="JUDGE_KEY")
    assert KEY[:3] not in texts_of(caught.value)
