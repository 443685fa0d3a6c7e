"""Judge and ScoreJudge over real HTTP: verdicts, log-probabilities, faults, costs and caps; the server counts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge, completion, pieces

from sail.errors import ConfigError, OracleError
from sail.oracles.calls import Caps, Patience, Retry
from sail.oracles.judge import Judge, Prices, ScoreJudge
from sail.oracles.judge.reply import read_reply
from sail.oracles.ledger import Call, Ledger
from sail.types import Pair

QUICK = Patience(attempts=4, first_wait=0.01, longest_wait=0.5)
PAIRS = [Pair(f"w{number}", "w1 w3 w3", "w3 w2") for number in range(24)]


def judge(server: FakeJudge, kind: type[Judge] | type[ScoreJudge] = Judge, **options: Any) -> Any:
    return kind(server.url, "fake", **{"patience": QUICK, "timeout": 10.0, **options})


def total(server: FakeJudge) -> int:
    return sum(server.asked.values())


# ---- verdicts


def test_a_pair_and_its_swap() -> None:
    with FakeJudge() as server:
        given = judge(server).compare([PAIRS[0], PAIRS[0].swap(), Pair("p", "w1", "w2")])
    assert [one.first_wins for one in given] == [1.0, 0.0, 0.5]


def test_many_pairs_keep_their_order() -> None:
    pairs = [Pair(f"w{number}", *(["w3", "w1"] if number % 3 else ["w1", "w3"])) for number in range(60)]
    with FakeJudge(latency=0.01) as server:
        given = judge(server, concurrency=16).compare(pairs)
        assert [one.first_wins for one in given] == [float(number % 3 > 0) for number in range(60)]
        assert server.most_at_once <= 16


def test_a_conversation_as_prompt() -> None:
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    with FakeJudge() as server:
        judge(server).compare([Pair(talk, "w3", "w1")])
        assert list(pieces(server.bodies[0]["messages"][0]["content"])) == [
            "system",
            "user",
            "response A",
            "response B",
        ]


def test_an_unreadable_reply_is_kept_and_not_asked_again() -> None:
    with FakeJudge(judge=lambda message: "I'm sorry, I can't compare these.") as server:
        one = judge(server)
        for _ in range(2):
            (given,) = one.compare(PAIRS[:1])
            assert given.first_wins is None
            assert "no verdict" in (given.reason or "")
        assert total(server) == 1
        assert [row["raw"] for row in one.ledger.rows()] == ["I'm sorry, I can't compare these."]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            completion(None, message={"role": "assistant", "content": None, "refusal": "I will not."}),
            "refused: I will not",
        ),
        (completion("[[A]]", finish_reason="content_filter"), "content filter"),
        (completion(None), "empty reply"),
        (completion("", finish_reason="length"), "cut at max_tokens"),
        (completion("I think [[A]] but the other", finish_reason="length"), "cut at max_tokens"),
        (completion("[[A]] [[B]]"), "several verdicts"),
    ],
)
def test_replies_without_a_verdict(reply: dict[str, Any], reason: str) -> None:
    with FakeJudge(judge=lambda message: reply) as server:
        (given,) = judge(server).compare(PAIRS[:1])
        assert given.first_wins is None
        assert reason in (given.reason or "")
        assert total(server) == 1


def test_content_in_parts() -> None:
    parts = completion(
        None, message={"content": [{"type": "text", "text": "so "}, {"type": "text", "text": "[[B]]"}]}
    )
    with FakeJudge(judge=lambda message: parts) as server:
        assert judge(server).compare(PAIRS[:1])[0].first_wins == 0.0


# ---- faults: nothing lost, nothing paid twice, no hang


FAULTS = [
    "500",
    "limited:0.05",
    "cut_stream",
    "garbage",
    "html:502",
    "html:200",
    'json:{"choices": []}',
    "reset",
    "503",
    'json:{"error": "x"}',
]


def test_no_label_is_lost_and_none_is_paid_twice(tmp_path: Path) -> None:
    """Every question meets one or two faults first; the second process of the run asks nothing."""

    def plan(question: str, attempt: int) -> str:
        return (
            FAULTS[(int(question[:8], 16) + attempt) % len(FAULTS)]
            if attempt < 1 + int(question[8], 16) % 2
            else "ok"
        )

    with FakeJudge(plan) as server:
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            given = judge(server, ledger=ledger).compare(PAIRS)
        assert [one.first_wins for one in given] == [1.0] * len(PAIRS)
        assert set(server.paid.values()) == {1}
        assert len(server.paid) == len(PAIRS)
        asked = total(server)
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            assert judge(server, ledger=ledger).compare(PAIRS) == given
            assert ledger.spent().calls == asked == total(server)
            assert sum(row["state"] == "answered" for row in ledger.rows()) == len(PAIRS)
            assert not ledger.possibly_paid()


def test_a_server_that_hangs_costs_the_row_only() -> None:
    hung = {"one": ""}

    def plan(question: str, attempt: int) -> str:
        hung["one"] = hung["one"] or question
        return "hang" if question == hung["one"] else "ok"

    with FakeJudge(plan) as server:
        one = judge(server, timeout=0.3, patience=Patience(attempts=2, first_wait=0.01))
        given = one.compare(PAIRS[:8])
    lost = [answer for answer in given if answer.first_wins is None]
    assert len(lost) == 1
    assert "within 0.3 seconds" in (lost[0].reason or "")
    assert server.asked[hung["one"]] == 2


def test_a_refused_request_is_not_repeated() -> None:
    with FakeJudge(lambda question, attempt: "400:context length exceeded") as server:
        (given,) = judge(server).compare(PAIRS[:1])
        assert given.first_wins is None
        assert "context length exceeded" in (given.reason or "")
        assert total(server) == 1


def test_a_server_that_refuses_everything_stops_the_run() -> None:
    with FakeJudge(lambda question, attempt: "400:no such option") as server:
        one = judge(server, patience=Patience(failures_in_a_row=5), concurrency=1)
        with pytest.raises(OracleError, match="no such option"):
            one.compare(PAIRS)
        assert total(server) == 5


def test_a_wrong_key_stops_the_run_at_once() -> None:
    with FakeJudge(lambda question, attempt: "401") as server:
        with pytest.raises(OracleError, match="key was refused"):
            judge(server, concurrency=1).compare(PAIRS)
        assert total(server) == 1


def test_a_long_retry_after_is_not_waited_for() -> None:
    with FakeJudge(lambda question, attempt: "limited:3600") as server:
        (given,) = judge(server).compare(PAIRS[:1])
        assert given.first_wins is None
        assert total(server) == 1


@pytest.mark.parametrize("cap", [1, 7, 23])
def test_the_cap_on_calls_is_held_to_the_call(cap: int) -> None:
    """Faults count too: the server never sees one request more."""
    with FakeJudge(lambda question, attempt: "500" if attempt == 0 else "ok", latency=0.01) as server:
        given = judge(server, caps=Caps(calls=cap), concurrency=8).compare(PAIRS)
        assert total(server) == cap
    answered = [one for one in given if one.first_wins is not None]
    assert len(answered) <= cap // 2
    assert all(
        "budget" in (one.reason or "") or "HTTP 500" in (one.reason or "")
        for one in given
        if one.first_wins is None
    )


# ---- cost


def test_tokens_and_money() -> None:
    with FakeJudge() as server:
        one = judge(server, prices=Prices(2.0, 30.0))
        one.compare(PAIRS[:3])
    spent = one.ledger.spent()
    assert (spent.calls, spent.tokens) == (3, 330)
    # by hand: 3 * (100 * 2 + 10 * 30) / 1e6
    assert math.isclose(spent.cost, 0.0015)


@pytest.mark.parametrize("caps", [Caps(tokens=1000), Caps(cost=0.0049)])
def test_caps_on_tokens_and_money_are_never_passed(caps: Caps) -> None:
    with FakeJudge(latency=0.01) as server:
        one = judge(server, prices=Prices(2.0, 30.0), caps=caps, concurrency=8)
        one.compare(PAIRS)
    assert one.ledger.spent().tokens <= 1000
    assert one.ledger.spent().tokens > 800  # nine calls of 110 fit, and the ninth is not refused in vain


def test_without_usage_tokens_are_estimated() -> None:
    """Else a cap on tokens would never be reached."""
    silent = {**completion("[[A]]"), "usage": None}
    with FakeJudge(judge=lambda message: silent) as server:
        one = judge(server)
        one.compare(PAIRS[:1])
        size = len(server.bodies[0]["messages"][0]["content"])
    (row,) = one.ledger.rows()
    assert size / 4 < row["tokens_in"] < size / 2
    assert row["tokens_out"] == 2


# ---- settings


def test_settings_say_what_answers_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-verysecret-0123456789")
    mine = tmp_path / "mine.md"
    mine.write_text("{prompt} {first} {second}", encoding="utf-8")
    first = Judge("http://127.0.0.1:1/v1", "m", api_key_env="JUDGE_KEY")
    same = Judge("http://127.0.0.1:1/v1/", "m", concurrency=3, timeout=5.0, prices=Prices(1, 1))
    others = [
        Judge("http://127.0.0.1:2/v1", "m"),
        Judge("http://127.0.0.1:1/v1", "n"),
        Judge("http://127.0.0.1:1/v1", "m", rubric="safety"),
        Judge("http://127.0.0.1:1/v1", "m", rubric=mine),
        Judge("http://127.0.0.1:1/v1", "m", soft=False),
        Judge("http://127.0.0.1:1/v1", "m", temperature=0.5),
        Judge("http://127.0.0.1:1/v1", "m", max_tokens=5),
        Judge("http://127.0.0.1:1/v1", "m", extra={"seed": 1}),
        ScoreJudge("http://127.0.0.1:1/v1", "m"),
    ]
    assert first.settings() == same.settings()
    assert first.settings()["asks_log_probs"] is True
    known = {json.dumps(one.settings()) for one in [first, *others]}
    assert len(known) == 1 + len(others)
    assert "verysecret" not in json.dumps(first.settings()) + repr(vars(first))
    mine.write_text("{prompt} {first} {second}!", encoding="utf-8")
    assert Judge("http://127.0.0.1:1/v1", "m", rubric=mine).settings() != others[3].settings()
    # the temperature of Bradley-Terry is applied to the answers, not asked for: another one reads the same ledger
    assert ScoreJudge("http://127.0.0.1:1/v1", "m", score_temperature=3.0).settings() == others[-1].settings()


def test_extra_fields_are_added_and_taken_away() -> None:
    with FakeJudge() as server:
        judge(server, extra={"max_tokens": None, "max_completion_tokens": 9, "temperature": None}).compare(
            PAIRS[:1]
        )
        body = server.bodies[0]
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body
    assert "temperature" not in body


def test_nothing_secret_reaches_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server echoes the key in errors, refusals and replies."""
    key = "sk-verysecret-0123456789"
    monkeypatch.setenv("JUDGE_KEY", key)
    replies: Iterator[Any] = iter(
        [
            completion(f"{key} says: nothing"),
            completion(None, message={"refusal": key}),
            completion(f"{key}\n[[A]]"),
        ]
    )

    def plan(question: str, attempt: int) -> str:
        return f"500:bad key {key}" if attempt == 0 else "ok"

    with (
        FakeJudge(plan, judge=lambda message: next(replies)) as server,
        Ledger(tmp_path / "ledger.sqlite") as ledger,
    ):
        one = judge(server, ledger=ledger, api_key_env="JUDGE_KEY", concurrency=1)
        given = one.compare(PAIRS[:3])
        assert server.headers[0]["authorization"] == f"Bearer {key}"
        assert given[2].first_wins == 1.0
        assert "verysecret" not in str(list(ledger.rows())) + str(given)
    for file in tmp_path.iterdir():
        assert b"verysecret" not in file.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"rubric": "nice"},
        {"concurrency": 0},
        {"url": "x"},
        {"model": ""},
    ],
)
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, OracleError)):
        Judge(**{"url": "http://127.0.0.1:1/v1", "model": "m", **options})
    with pytest.raises(ConfigError, match="score_temperature"):
        ScoreJudge("http://127.0.0.1:1/v1", "m", score_temperature=0.0)


def test_a_call_is_the_same_message_in_every_process() -> None:
    """A cached answer must be the answer to the very words that would be sent now."""
    one = Judge("http://127.0.0.1:1/v1", "m")
    assert one.message(Call("p", "a", "b")) == one.message(Call("p", "a", "b"))


def test_replies_without_choices() -> None:
    for found in (
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [3]},
        {"error": {"message": "overloaded"}},
    ):
        with pytest.raises(Retry, match="no choice"):
            read_reply(found, "?")
