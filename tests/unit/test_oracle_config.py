"""The oracle section: every kind loads, resolves and loads back; slips are named; secrets are never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sail.config import RunConfig, load_config, resolved_yaml
from sail.errors import ConfigError
from sail.oracle_config import KINDS, keeps_ledger, lasting

HEAD = "model: org/name\ndata: {train: pairs.jsonl}\ntrain: {preset: sail-dpr}\noracle: "
FUNCTION = "{kind: function, path: 'reward.py:reward'}"
JUDGE = "{kind: judge, url: 'http://127.0.0.1:1/v1', model: small}"
SECTIONS = {
    "function": FUNCTION,
    "reward_model": "{kind: reward_model, model: org/rm, lower_is_better: true, wrap: [{noise: 0.1}]}",
    "judge": "{kind: judge, url: 'http://127.0.0.1:1/v1', model: small, prices: {in: 0.15, out: 0.6}, "
    "caps: {calls: 10, cost: 2}, wrap: [both_orders, {budget: {calls: 5, at_cap: stop}}]}",
    "people": "{kind: people, deadline: 60, annotators: 2, ledger: labels.sqlite}",
    "committee": f"{{kind: committee, members: [{JUDGE}, {FUNCTION}], abstain_above: 0.5, wrap: [remember]}}",
}


@pytest.fixture(autouse=True)
def _empty_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(oracle: str, *overrides: str) -> RunConfig:
    Path("run.yaml").write_text(HEAD + oracle, encoding="utf-8")
    return load_config("run.yaml", overrides)


def refusal(oracle: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(oracle, *overrides)
    return str(caught.value).partition("\n  - ")[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resolved_section_loads_back(kind: str) -> None:
    config = load(SECTIONS[kind])
    Path("again.yaml").write_text(resolved_yaml(config), encoding="utf-8")
    assert load_config("again.yaml") == config
    assert config.oracle is not None
    assert config.oracle.kind == kind


def test_what_is_written_is_what_is_read() -> None:
    oracle: Any = load(SECTIONS["judge"]).oracle
    assert oracle.wrap[0] == "both_orders"
    assert (oracle.wrap[1].budget.calls, oracle.wrap[1].budget.at_cap) == (5, "stop")
    assert (getattr(oracle.prices, "in"), oracle.prices.out) == (0.15, 0.6)
    assert (oracle.caps.calls, oracle.caps.tokens, oracle.caps.at_cap) == (10, None, "abstain")
    written = yaml.safe_load(resolved_yaml(load(SECTIONS["judge"])))["oracle"]
    assert written["wrap"] == ["both_orders", {"budget": {"calls": 5, "at_cap": "stop"}}]
    assert next(iter(written)) == "kind"


def test_who_keeps_a_ledger() -> None:
    """Paid calls, what is remembered or counted, and who names a file."""

    def keeps(section: str) -> bool:
        return keeps_ledger(load(section).oracle)

    assert {kind for kind in KINDS if keeps(SECTIONS[kind])} == {"judge", "people", "committee"}
    assert not keeps("{kind: people}")
    assert not keeps(
        f"{{kind: committee, members: [{FUNCTION}, {FUNCTION}], wrap: [both_orders, {{noise: 0.1}}]}}"
    )
    assert keeps(f"{{kind: committee, members: [{FUNCTION}, {FUNCTION[:-1]}, wrap: [remember]}}]}}")
    assert keeps(FUNCTION[:-1] + ", wrap: [{budget: {calls: 1}}]}")
    assert keeps(FUNCTION[:-1] + ", ledger: l.sqlite}")


def test_what_may_change_when_a_run_is_resumed() -> None:
    def seen(section: str, *overrides: str) -> Any:
        return lasting(yaml.safe_load(resolved_yaml(load(section, *overrides)))["oracle"])

    judge = SECTIONS["judge"]
    for change in (
        "caps.calls=99",
        "url=http://127.0.0.1:2/v1",
        "concurrency=32",
        "api_key_env=MY_KEY",
        "ledger=x.sqlite",
    ):
        assert seen(judge, f"oracle.{change}") == seen(judge)
    assert seen(judge, "oracle.wrap=[both_orders, {budget: {calls: 50}}]") == seen(judge)
    for change in ("model=other", "temperature=1", "rubric=safety", "wrap=[both_orders]"):
        assert seen(judge, f"oracle.{change}") != seen(judge)
    # A run that was begun before sections had wrap and ledger.
    assert seen(FUNCTION) == {"kind": "function", "path": "reward.py:reward", "temperature": 1.0}
    committee = SECTIONS["committee"]
    assert seen(committee.replace("model: small", "model: small, timeout: 7")) == seen(committee)
    assert seen(committee.replace("model: small", "model: large")) != seen(committee)


def test_what_goes_into_the_request_must_stay_word_for_word() -> None:
    """In `extra`, timeout is a field of the request and null takes one away; neither is an option of sail's."""
    judge = yaml.safe_load(SECTIONS["judge"])

    def seen(extra: dict[str, Any] | None) -> Any:
        return lasting({**judge, "extra": extra} if extra is not None else judge)

    assert seen({"timeout": 5}) != seen({"timeout": 6}) != seen({})
    assert seen({"max_tokens": None}) != seen({})
    assert seen({}) == seen(None)
    assert lasting({"kind": "committee", "members": [{**judge, "extra": {"ledger": 1}}]})["members"][0][
        "extra"
    ]


def test_an_override_reaches_nested_keys() -> None:
    oracle: Any = load(
        JUDGE, "oracle.caps.calls=3", "oracle.wrap=[remember]", "oracle.prices={in: 1, out: 2}"
    ).oracle
    assert (oracle.caps.calls, oracle.wrap, oracle.prices.out) == (
        3,
        ("both_orders", "remember"),
        2.0,
    )


@pytest.mark.parametrize(
    ("keys", "wrap"),
    [
        ("", ("both_orders",)),
        (", wrap: [remember]", ("both_orders", "remember")),
        (", wrap: [one_order]", ("one_order",)),
        (", wrap: [remember, both_orders]", ("remember", "both_orders")),
        (", mode: single", ()),
        (", mode: single, wrap: [remember]", ("remember",)),
    ],
)
def test_a_pairwise_judge_is_asked_in_both_orders_unless_told_otherwise(keys: str, wrap: tuple[Any]) -> None:
    assert load(JUDGE[:-1] + keys + "}").oracle.wrap == wrap


@pytest.mark.parametrize(
    ("oracle", "said"),
    [
        (JUDGE.replace("url", "ulr"), "oracle.ulr: there is no such key. Did you mean url?"),
        (
            JUDGE[:-1] + ", tokenizer: x}",
            "oracle.tokenizer: there is no such key. The keys are kind, url, model,",
        ),
        (JUDGE[:-1] + ", caps: {cals: 1}}", "oracle.caps.cals: there is no such key. Did you mean calls?"),
        (JUDGE[:-1] + ", caps: {calls: -1}}", "oracle.caps.calls must be at least 0; it is -1."),
        (JUDGE[:-1] + ", caps: {at_cap: halt}}", "oracle.caps.at_cap is one of abstain, stop; it is 'halt'."),
        (JUDGE[:-1] + ", caps: {cost: 1}}", "oracle: caps.cost needs prices"),
        (JUDGE[:-1] + ", prices: {in: 1}}", "oracle.prices.out is missing. Per million tokens of answers."),
        (
            JUDGE[:-1] + ", mode: pairwize}",
            "oracle.mode is one of pairwise, single; it is 'pairwize'. Did you mean",
        ),
        (JUDGE[:-1] + ", extra: {n: 4}}", "oracle.extra must not hold n: one reply is read per call."),
        (
            JUDGE[:-1] + ", extra: {metadata: {apiKey: sk-hidden}}}",
            "oracle.extra must hold no secret, and apiKey looks like one",
        ),
        (JUDGE[:-1] + ", timeout: yes}", "oracle.timeout must be a number; it is true."),
        (JUDGE.replace("http://127.0.0.1:1/v1", "127.0.0.1:1"), "oracle.url must be an address such as"),
        ("{kind: people, port: 70000}", "oracle.port must be at most 65535; it is 70000."),
        ("{kind: reward_model}", "oracle.model is missing. Folder or hub name of a sequence classifier"),
        (
            "{kind: [a]}",
            "oracle.kind is one of function, reward_model, judge, people, committee; it is ['a'].",
        ),
        ("judge", "oracle must be a section of keys and values; it is 'judge'."),
        (
            f"{{kind: committee, members: [{FUNCTION}, {FUNCTION[:-1]}, ledger: x}}]}}",
            "oracle: a committee keeps one ledger. Set its own",
        ),
        (f"{{kind: committee, members: [{FUNCTION}]}}", "oracle.members needs at least 2 entries"),
        (
            f"{{kind: committee, members: [{FUNCTION}, {{kind: committee}}]}}",
            "oracle.members.1.kind is one of function, reward_model, judge, people; it is 'committee'.",
        ),
        (
            f"{{kind: committee, members: [{FUNCTION}, {JUDGE.replace('model', 'modle')}]}}",
            "oracle.members.1.model is missing. The model's name at that endpoint.",
        ),
        (JUDGE[:-1] + ", wrap: both_orders}", "oracle.wrap must be a list; it is 'both_orders'."),
        (
            JUDGE[:-1] + ", wrap: [both_order]}",
            "oracle.wrap.0 is one of both_orders, one_order, remember, {noise: 0.1},",
        ),
        (JUDGE[:-1] + ", wrap: [{noise: 2}]}", "oracle.wrap.0.noise must be at most 1; it is 2."),
        (
            JUDGE[:-1] + ", wrap: [{noise: 1, sed: 2}]}",
            "oracle.wrap.0.sed: there is no such key. Did you mean seed?",
        ),
        (
            JUDGE[:-1] + ", wrap: [{budget: {cals: 2}}]}",
            "oracle.wrap.0.budget.calls is missing. Pairs that may be asked",
        ),
    ],
)
def test_slips(oracle: str, said: str) -> None:
    assert refusal(oracle).startswith(said) or f"\n  - {said}" in refusal(oracle)


@pytest.mark.parametrize(
    "override",
    [
        "oracle.api_key_env=sk-THEVALUE",
        "oracle.api_key_env=theValueTHEVALUE",
        "oracle.api_key=THEVALUE",
        "oracle.url='http://me:THEVALUE@host/v1'",
        "oracle={kind: judge, url: 'http://x', model: m, api_key: THEVALUE}",
    ],
)
def test_a_key_given_by_mistake_is_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(JUDGE, override)
    assert "THEVALUE" not in str(caught.value)
    key, _, value = override.partition("=")
    in_the_file = str({**yaml.safe_load(JUDGE), key.partition(".")[2] or "x": yaml.safe_load(value)})
    with pytest.raises(ConfigError) as caught:
        load(in_the_file)
    assert "THEVALUE" not in str(caught.value)


def test_paths_are_found_beside_the_file_by_kind(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    folder.mkdir()
    for name in ("rm", "judge", "helpfulness"):
        (folder / name).mkdir()
    for name in ("reward.py", "rubric.md", "old.sqlite"):
        (folder / name).touch()
    (folder / "run.yaml").write_text(
        HEAD + "{kind: committee, ledger: old.sqlite, members: ["
        "{kind: reward_model, model: rm, tokenizer: org/tok}, {kind: function, path: 'reward.py:reward'}, "
        "{kind: judge, url: 'http://127.0.0.1:1/v1', model: judge, rubric: rubric.md}, "
        "{kind: judge, url: 'http://127.0.0.1:1/v1', model: judge, rubric: helpfulness}]}"
    )
    oracle: Any = load_config(folder / "run.yaml").oracle
    reward_model, function, judge, plain = oracle.members
    assert oracle.ledger == str(folder / "old.sqlite")
    assert (reward_model.model, reward_model.tokenizer) == (str(folder / "rm"), "org/tok")
    assert function.path == f"{folder / 'reward.py'}:reward"
    # A judge's model is a name at its endpoint, whatever folder is called the same.
    assert (judge.model, judge.rubric) == ("judge", str(folder / "rubric.md"))
    assert plain.rubric == "helpfulness"
