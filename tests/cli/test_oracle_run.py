"""Oracles from a run file through `sail train`: wrappers, the ledger over resume and --overwrite, budgets, a judge."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from oracle_cases import judge_server
from tiny import make_model, make_pairs, make_tokenizer

from sail import build_oracle
from sail.build import run_training
from sail.config import config_from_dict
from sail.dry_run import dry_run
from sail.errors import ConfigError, OracleError
from sail.evaluate import EvalOptions, evaluate
from sail.oracles.calls import Answer, Call, CallOracle
from sail.oracles.ledger import LEDGER, Ledger

REWARD = """\
from pathlib import Path

asked = Path(__file__).with_name("asked.txt")


def reward(prompts, responses):
    with asked.open("a") as file:
        file.write("x" * (len(responses) // 2))
    return [response.split().count("w3") - 0.1 * len(response.split()) for response in responses]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_model().save_pretrained(folder / "sft")
    make_tokenizer().save_pretrained(folder / "sft")
    for name, count in (("pairs", 40), ("held", 6)):
        text = "".join(json.dumps(row) + "\n" for row in make_pairs(count, seed=count))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "reward.py").write_text(REWARD, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _nothing_asked(world: Path) -> None:
    (world / "asked.txt").write_text("")


def asked(world: Path) -> int:
    """How many pairs the reward function was asked about."""
    return len((world / "asked.txt").read_text())


def config(
    world: Path, folder: Path, oracle: dict[str, Any] | None = None, *, held_out: bool = False, **train: Any
) -> Any:
    section = {"kind": "function", "path": f"{world / 'reward.py'}:reward", **(oracle or {})}
    options = {
        "preset": "sail-dpr",
        "output_dir": str(folder),
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
    }
    options |= {"max_length": 40, "max_prompt_length": 16, "max_new_tokens": 8, "disable_tqdm": True}
    data = {"train": str(world / "pairs.jsonl"), "eval": str(world / "held.jsonl") if held_out else None}
    raw = {"model": str(world / "sft"), "data": data, "oracle": section}
    return config_from_dict({**raw, "train": {**options, "use_cpu": True, "report_to": [], **train}})


def train(made: Any, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    folder = run_training(made, resume=resume, overwrite=overwrite, config_path="run.yaml", show_config=False)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def sampled_pairs(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / "pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# --- A callable with things around it -------------------------------------------------------------------------


def test_without_a_ledger_there_is_none(world: Path, tmp_path: Path) -> None:
    oracle = {"wrap": ["both_orders", {"noise": 0.2}]}
    results = train(config(world, tmp_path / "run", oracle, held_out=True))
    assert not (tmp_path / "run" / LEDGER).exists()
    assert results["oracle"].keys() == {"name", "both_orders", "noise"}
    assert results["oracle"]["noise"]["asked"] > 0
    # Noise is training's: held-out answers are scored by the function itself.
    assert results["metrics"]["reward"]["n"] == 6


def test_what_is_remembered_lies_in_the_run_folder_with_the_step_that_asked(
    world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    results = train(config(world, folder, {"wrap": ["remember"]}))
    with Ledger(folder / LEDGER, run=".") as ledger:
        rows = list(ledger.rows())
        assert {row["run"] for row in rows} == {"."}
        assert ledger.spent().remembered == len(rows) == results["oracle"]["remembered"] == asked(world)
    # Each row says the step at which its pair was asked first, as pairs.jsonl.gz has it.
    steps: dict[tuple[str, ...], int] = {}
    for pair in sampled_pairs(folder):
        steps.setdefault((pair["prompt"], pair["first"], pair["second"]), pair["step"])
    in_training = [row for row in rows if (row["prompt"], row["first"], row["second"]) in steps]
    assert len(in_training) > 5
    assert all(row["step"] == steps[row["prompt"], row["first"], row["second"]] for row in in_training)
    assert results["oracle"]["calls"] == 0


def test_a_run_that_points_at_the_ledger_of_another_one_pays_nothing_again(
    world: Path, tmp_path: Path
) -> None:
    first = train(config(world, tmp_path / "a", {"wrap": ["remember"]}))
    before = asked(world)
    oracle = {"wrap": ["remember"], "ledger": str(tmp_path / "a" / LEDGER)}
    second = train(config(world, tmp_path / "b", oracle))
    assert asked(world) == before
    assert second["oracle"]["from_ledger"] >= first["oracle"]["remembered"]
    assert second["oracle"]["remembered"] == 0
    assert sampled_pairs(tmp_path / "b") == sampled_pairs(tmp_path / "a")
    assert not (tmp_path / "b" / LEDGER).exists()
    with Ledger(tmp_path / "a" / LEDGER, run="../b") as ledger:
        assert ledger.spent().found == second["oracle"]["from_ledger"]


def test_overwriting_keeps_every_answer_and_begins_its_counts_anew(world: Path, tmp_path: Path) -> None:
    own = config(world, tmp_path / "a", {"wrap": ["remember"]}, max_steps=1)
    first = train(own)
    again = train(own, overwrite=True)
    assert again["oracle"]["remembered"] == 0
    assert again["oracle"]["from_ledger"] >= first["oracle"]["remembered"] == asked(world)
    shared = config(
        world, tmp_path / "b", {"wrap": ["remember"], "ledger": str(tmp_path / "shared.sqlite")}, max_steps=1
    )
    train(shared)
    again = train(shared, overwrite=True)
    assert again["oracle"]["remembered"] == 0
    with Ledger(tmp_path / "shared.sqlite") as ledger:
        assert len({row["run"] for row in ledger.rows()}) == 1
        assert next(iter(ledger.rows()))["run"].startswith("b until ")


def test_overwriting_leaves_a_ledger_in_its_folder_that_another_run_is_writing(
    world: Path, tmp_path: Path
) -> None:
    """The documented way to share: run b points at a's. While b has it open, a is overwritten; what b then commits is there."""
    a = config(world, tmp_path / "a", {"wrap": ["remember"]}, max_steps=1)
    train(a)
    path = tmp_path / "a" / LEDGER
    with Ledger(path, run="../b") as open_in_b:
        oracle = open_in_b.oracle("b's", {"kind": "b"})
        train(a, overwrite=True)
        open_in_b.remember(oracle, [(Call("b asks", "x", "y"), Answer(0.5))])
        # And where a itself names that file.
        train(
            config(world, tmp_path / "a", {"wrap": ["remember"], "ledger": str(path)}, max_steps=1),
            overwrite=True,
        )
        open_in_b.remember(oracle, [(Call("b asks again", "x", "y"), Answer(0.5))])
    with Ledger(path, run="../b") as ledger:
        assert [row["prompt"] for row in ledger.rows(run="../b")] == ["b asks", "b asks again"]
        assert ledger.spent().remembered == 2


@pytest.mark.parametrize("section", ["oracle", "eval_oracle"])
def test_a_reward_file_that_was_edited_continues_a_run_and_is_named(
    world: Path, tmp_path: Path, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(REWARD, encoding="utf-8")
    raw = config(world, tmp_path / "run", max_steps=2).model_dump()
    raw[section] = {"kind": "function", "path": f"{file}:reward"}
    train(config_from_dict(raw))
    train(config_from_dict(raw), resume=True)
    assert "Python file was edited" not in capsys.readouterr().out
    file.write_text(REWARD.replace("0.1", "0.2"), encoding="utf-8")
    train(config_from_dict(raw), resume=True)
    assert f"{section}: its Python file was edited since checkpoint-2 was saved" in capsys.readouterr().out


def test_a_spent_budget_stops_the_run_and_a_larger_one_resumes_it_to_the_same_end(
    world: Path, tmp_path: Path
) -> None:
    full = train(config(world, tmp_path / "full", {"wrap": [{"budget": {"calls": 1000}}]}))
    needed = full["oracle"]["remembered"]

    def budget(calls: int) -> Any:
        oracle = {"wrap": [{"budget": {"calls": calls, "at_cap": "stop"}}]}
        return config(world, tmp_path / "run", oracle)

    with pytest.raises(OracleError, match=r"the budget of 12 pairs is spent, and at_cap is stop"):
        train(budget(12))
    results = train(budget(1000), resume=True)
    assert sampled_pairs(tmp_path / "run") == sampled_pairs(tmp_path / "full")
    assert results["metrics"] == full["metrics"]
    # Nothing that had been asked was asked again: both runs together asked twice what one needs.
    assert results["oracle"]["remembered"] == needed
    assert asked(world) == 2 * needed


def test_another_oracle_cannot_continue_a_run(world: Path, tmp_path: Path) -> None:
    train(config(world, tmp_path / "run", {"wrap": ["remember"]}, max_steps=2))
    with pytest.raises(ConfigError, match=r"oracle\.wrap: \['remember'\] then, \['remember', \{'noise'"):
        train(
            config(world, tmp_path / "run", {"wrap": ["remember", {"noise": 0.5}]}, max_steps=2), resume=True
        )


def test_a_damaged_ledger_stops_the_run_before_it_begins(world: Path, tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").write_text("oops")
    with pytest.raises(OracleError, match="is not a ledger"):
        train(config(world, tmp_path / "run", {"wrap": ["remember"], "ledger": str(tmp_path / "l.sqlite")}))
    assert asked(world) == 0


def test_a_committee_in_a_dry_run_leaves_nothing_behind(world: Path, tmp_path: Path) -> None:
    function = {"kind": "function", "path": f"{world / 'reward.py'}:reward"}
    members = [{**function, "wrap": ["remember"]}, {**function, "temperature": 2.0, "wrap": [{"noise": 1.0}]}]
    made = config(world, tmp_path / "run")
    raw = {"kind": "committee", "members": members, "abstain_above": 0.0}
    made = config_from_dict({**made.model_dump(), "oracle": raw})
    said = dry_run(made)
    assert (
        "oracle committee, asked about the first 8 pairs: prefers the chosen response of 0, abstains on 8 (the"
        in said
    )
    assert not (tmp_path / "run").exists()


# --- Paid calls -----------------------------------------------------------------------------------------------


class Likes(CallOracle):
    """Stands where the judge does, with the judge's arguments."""

    def __init__(self, url: str, model: str, **options: Any) -> None:
        kept = ("ledger", "caps", "patience", "concurrency")
        self.options = {name: value for name, value in options.items() if name not in kept}
        super().__init__(model, **{name: options[name] for name in kept})

    def send(self, call: Call) -> Answer:
        better = call.first.split().count("w3") >= call.second.split().count("w3")
        return Answer(0.9 if better else 0.1, raw="A", tokens_in=10, tokens_out=2, cost=0.5)


def test_the_keys_of_a_judge_reach_it(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def part(kind: str, name: str) -> Any:
        given.append((kind, name))
        return (lambda *prices: prices) if name == "Prices" else Likes

    monkeypatch.setattr(build_oracle, "_part", part)
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "prices": {"in": 1, "out": 2}}
    judge |= {"caps": {"calls": 9}, "attempts": 2, "concurrency": 3, "timeout": 5, "wrap": ["both_orders"]}
    raw = config(world, tmp_path / "run").model_dump()
    made = config_from_dict({**raw, "oracle": judge})
    oracle: Any = build_oracle.make_oracle(made, build_oracle.make_ledger(made))
    inner = oracle.inner
    assert given == [("judge", "Prices"), ("judge", "Judge")]
    assert (inner.caps.calls, inner.patience.attempts, inner.concurrency) == (9, 2, 3)
    assert inner.options["prices"] == (1.0, 2.0)
    assert (inner.options["timeout"], inner.options["soft"], inner.options["rubric"]) == (
        5.0,
        True,
        "helpfulness",
    )
    assert inner.ledger.path == tmp_path / "run" / LEDGER
    assert inner.ledger.run == "."
    single: Any = build_oracle.make_oracle(config_from_dict({**raw, "oracle": {**judge, "mode": "single"}}))
    assert given[-1] == ("judge", "ScoreJudge")
    assert "soft" not in single.inner.options
    assert single.inner.options["score_temperature"] == 1.0


def test_a_paid_run_says_what_it_has_cost(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_oracle, "_part", lambda kind, name: Likes)
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "wrap": ["both_orders"]}
    raw = config(world, tmp_path / "run").model_dump()
    results = train(config_from_dict({**raw, "oracle": judge}))["oracle"]
    with Ledger(tmp_path / "run" / LEDGER, run=".") as ledger:
        calls = len(list(ledger.rows(state="answered")))
    assert results["calls"] == calls > 0
    assert (results["tokens"], results["cost"]) == (12 * calls, 0.5 * calls)
    assert (results["failed"], results["possibly_paid"]) == (0, 0)
    assert results["both_orders"]["asked"] >= calls // 2


def test_a_paid_run_is_evaluated_with_its_own_oracle_and_ledger(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_oracle, "_part", lambda kind, name: Likes)
    judge = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", "wrap": ["both_orders"]}
    folder = tmp_path / "run"
    raw = config(world, folder, held_out=True, max_steps=1).model_dump()
    train(config_from_dict({**raw, "oracle": judge}))

    def paid() -> int:
        with Ledger(folder / LEDGER, run=".") as ledger:
            return ledger.spent().calls

    before = paid()
    found = evaluate(EvalOptions(str(folder), prompts=4))
    assert found["settings"]["oracle"].startswith("m ")
    assert found["metrics"]["win_rate"]["n"] == 4
    after = paid()
    evaluate(EvalOptions(str(folder), prompts=4, overwrite=True))
    assert paid() == after >= before


def test_what_is_missing_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"oracle\.kind oracle_of_delphi is not part of this version of sail"
    ):
        build_oracle._part("oracle_of_delphi", "Pythia")


def test_a_judge_from_the_run_file_labels_a_run(world: Path, tmp_path: Path) -> None:
    """Over HTTP: more of the word w3 wins."""

    def say(question: str) -> str:
        counts = [
            len(re.findall(r"\bw3\b", text)) for text in re.split(r"(?i)answer b|response b", question)[-2:]
        ]
        return "[[A]]" if counts[0] > counts[1] else "[[B]]" if counts[0] < counts[1] else "[[C]]"

    with judge_server(say) as url:
        judge = {"kind": "judge", "url": url, "model": "m", "soft": False, "wrap": ["both_orders"]}
        made = config_from_dict({**config(world, tmp_path / "run").model_dump(), "oracle": judge})
        assert "oracle judge m, asked about the first 2 pairs" in dry_run(made)
        results = train(made)
    assert results["oracle"]["calls"] > 0
    assert results["oracle"]["tokens"] == 11 * results["oracle"]["calls"]
    assert results["oracle"]["failed"] == 0
