"""What a judge's server must not make of a call: a key in the ledger, a cap that is not held, a sum without end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge
from test_judge import PAIRS, judge, total

from sail.errors import ConfigError
from sail.oracles.calls import Answer, Caps, Retry
from sail.oracles.judge import Judge, Prices
from sail.oracles.ledger import Call, Ledger


@pytest.mark.parametrize("spaces", [0, 150, 190])
def test_an_error_in_a_reply_of_status_200_does_not_hold_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spaces: int
) -> None:
    """Some gateways answer so; the error's text is cut at 200 characters, also in the middle of a key."""
    key = "sk-verysecret-0123456789"
    monkeypatch.setenv("JUDGE_KEY", key)
    error = {"error": {"message": f"{'y ' * (spaces // 2)}Incorrect API key provided: {key}"}}
    with (
        FakeJudge(lambda question, attempt: f"json:{json.dumps(error)}") as server,
        Ledger(tmp_path / "ledger.sqlite") as ledger,
    ):
        given = judge(server, ledger=ledger, api_key_env="JUDGE_KEY").compare(PAIRS[:1])
        shown = str(given) + str(list(ledger.rows()))
    assert "the reply has no choice" in (given[0].reason or "")
    assert not any(key[at : at + 4] in shown for at in range(10))
    for file in tmp_path.iterdir():
        assert b"verysecret" not in file.read_bytes()


def test_whatever_send_says_is_redacted_before_it_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a kind of judge forgets it."""
    key = "sk-verysecret-0123456789"
    monkeypatch.setenv("JUDGE_KEY", key)

    class Careless(Judge):
        def send(self, call: Call) -> Answer:
            if call.prompt == "w0":
                return Answer(None, f"reason {key}", raw=f"raw {key}")
            raise Retry(f"retry {key}", after=math.inf)

    one = Careless("http://127.0.0.1:1/v1", "m", api_key_env="JUDGE_KEY")
    shown = str(one.compare(PAIRS[:2])) + str(list(one.ledger.rows()))
    assert "verysecret" not in shown
    assert shown.count("reason [key]") == 2  # the preference and the ledger
    assert shown.count("retry [key]") == 2


def test_markdown_in_a_reply_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-verysecret-0123456789")
    with FakeJudge(judge=lambda message: "***Winner: A***") as server:
        one = judge(server, api_key_env="JUDGE_KEY")
        assert one.compare(PAIRS[:1])[0].first_wins == 1.0
        assert [row["raw"] for row in one.ledger.rows()] == ["***Winner: A***"]


def test_a_reply_without_a_choice_costs_what_it_says() -> None:
    """1500 tokens a call, by hand 1000 * 2 + 500 * 30 = 17,000 millionths: the cap is reached with the first one."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 500}
    said = json.dumps({"choices": [], "usage": usage})
    with FakeJudge(lambda question, attempt: f"json:{said}") as server:
        one = judge(server, prices=Prices(2.0, 30.0), caps=Caps(tokens=100), concurrency=4)
        given = one.compare(PAIRS)
        assert total(server) == 1
    assert one.ledger.spent().tokens == 1500
    assert math.isclose(one.ledger.spent().cost, 0.017)
    assert sum("budget" in (answer.reason or "") for answer in given) >= len(PAIRS) - 1


@pytest.mark.parametrize("choices", [[], [{"message": {"content": "[[A]]"}}]])
def test_token_counts_that_no_call_has_are_no_end_of_the_ledger(choices: list[Any]) -> None:
    said = json.dumps({"choices": choices, "usage": {"prompt_tokens": 2**63, "completion_tokens": 10**30}})
    with FakeJudge(lambda question, attempt: f"json:{said}") as server:
        one = judge(server)
        (given,) = one.compare(PAIRS[:1])
    assert given.first_wins == (1.0 if choices else None)
    assert one.ledger.spent().open == 0
    assert not one.ledger.possibly_paid()


@pytest.mark.parametrize(
    "extra",
    [
        {"api_key": "sk-verysecret-0123456789"},
        {"metadata": {"accessToken": "verysecret"}},
        {"headers": [{"Authorization": "verysecret"}]},
        {"user": "sk-verysecret-0123456789"},
        {"x-api-key": "verysecret"},
        {"stream": True},
        {"n": 4},
        {"messages": []},
        {"model": "other"},
    ],
)
def test_secrets_and_our_own_fields_are_refused_in_extra(extra: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"oracle\.extra must (not hold|hold no secret)") as caught:
        Judge("http://127.0.0.1:1/v1", "m", extra=extra)
    assert "verysecret" not in str(caught.value)


def test_fields_that_only_sound_like_a_secret_are_sent() -> None:
    extra = {
        "max_completion_tokens": 9,
        "logit_bias": {"50256": -100},
        "prompt_cache_key": "judge",
        "api_key": None,
        "chat_template_kwargs": {"enable_thinking": False, "eos_token": "</s>"},
    }
    assert Judge("http://127.0.0.1:1/v1", "m", extra=extra).extra == extra
