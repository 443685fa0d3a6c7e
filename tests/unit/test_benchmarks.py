"""The benchmark's own machinery: turns alternate, one at a time; the comparison is checked to be one."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "speed"))

import contestants
import measure as speed
import table
import world
from peak import PeakBytes
from turns import Turn, alternate, rounds


class Worker:
    """Stands for a Trainer: its steps note who is at work, and call on_step_end."""

    def __init__(self, name: str, log: list[str], *, nap: float = 0.0, last: int = 100) -> None:
        self.name, self.log, self.nap, self.last = name, log, nap, last
        self.ended = False
        self.turn = Turn(self.train)

    def train(self) -> None:
        control = SimpleNamespace(should_training_stop=False)
        for _ in range(self.last):
            self.log.append(f"+{self.name}")
            time.sleep(self.nap)
            self.log.append(f"-{self.name}")
            self.turn.on_step_end(None, None, control)
            if control.should_training_stop:
                break
        self.ended = True


def test_one_at_a_time_and_each_once_a_round() -> None:
    log: list[str] = []
    workers = {name: Worker(name, log, nap=0.002) for name in "abc"}
    seconds = alternate({name: worker.turn for name, worker in workers.items()}, warm_up=1, steps=5)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 5, "b": 5, "c": 5}
    for begin, end in zip(log[::2], log[1::2], strict=True):
        assert (begin[0], end[0]) == ("+", "-")
        assert begin[1] == end[1], "another one began before this one had ended"
    for number in range(6):
        assert sorted(name[1] for name in log[6 * number : 6 * number + 6 : 2]) == ["a", "b", "c"]
    assert all(worker.ended for worker in workers.values())


def test_a_turns_time_is_its_own() -> None:
    log: list[str] = []
    workers = {"slow": Worker("s", log, nap=0.03), "fast": Worker("f", log)}
    seconds = alternate({name: worker.turn for name, worker in workers.items()}, warm_up=0, steps=4)
    assert min(seconds["slow"]) >= 0.03
    assert sorted(seconds["fast"])[0] < 0.03, "waiting for the others was counted"


def test_the_order_changes_between_rounds() -> None:
    orders = [tuple(order) for order in rounds("abc", 30)]
    assert len(set(orders)) == 6
    assert orders == [tuple(order) for order in rounds("abc", 30)]


def test_an_error_of_a_training_reaches_the_caller() -> None:
    def fail() -> None:
        raise ValueError("no such batch")

    with pytest.raises(ValueError, match="no such batch"):
        Turn(fail).take()


def test_a_training_that_ends_too_early_is_an_error() -> None:
    worker = Worker("a", [], last=2)
    with pytest.raises(RuntimeError, match="raise its max_steps"):
        alternate({"a": worker.turn}, warm_up=0, steps=3)


def test_a_turn_that_never_began_can_finish() -> None:
    before = threading.active_count()
    begun: list[int] = []
    Turn(lambda: begun.append(1)).finish()
    assert not begun
    assert threading.active_count() == before


def test_ratios_are_of_the_same_round() -> None:
    """By hand: the machine gets ten times slower in the third round, and no ratio sees it."""
    table = speed.ratios({"trl": [1.0, 1.0, 10.0], "data": [0.5, 0.5, 5.0], "dpr": [1.0, 1.5, 15.0]}, "full")
    assert table["data / trl"] == {"median": 0.5, "low": 0.5, "high": 0.5, "n": 3, "target": 0.9}
    assert table["dpr / data"]["median"] == 3.0
    assert set(table) == {"data / trl", "dpr / data"}
    assert speed.ratios({"trl": [1.0], "data": [1.0]}, "lora")["data / trl"]["target"] == 1.0


def test_peak_bytes_by_hand() -> None:
    """x 40,000; w 4,000 (read, and there before); y 400,000; z 400,000; the sum 4, its gradient 4; the gradient of w 4,000."""
    weight = torch.randn(100, 10, requires_grad=True)
    with PeakBytes() as peak:
        x = torch.randn(1000, 10)
        y = x @ weight.T
        z = y * 2
        del y
        assert peak.now == peak.peak - 400_000 == 444_000
        z.sum().backward()
        assert peak.peak == 848_008
        del z, x
    assert peak.now == 8_000
    assert peak.largest == 400_000


def test_model_operations_by_hand() -> None:
    """One layer of width 2, inner 3, one head, 5 words and two marks, of a text's 10 tokens 5 of the response: weights
    4*4 + 3*6 and 7*2 for every second token = 41; a token costs 2*41 + 2*1*2*10 = 122 forward. Six trained tokens (forward and
    twice that backward) and six read ones: 122 * (18 + 6)."""
    shape = world.Shape(2, 1, 3, 1, 1, 5, response=5)
    assert world.train_flops(shape, 6, 6, 10, lora=False) == 122 * 24
    assert world.train_flops(shape, 6, 6, 10, lora=True) == 122 * 18
    assert (
        world.train_flops(world.Shape(2, 1, 3, 1, 1, 5), 6, 6, 10, lora=False) == 136 * 24
    )  # no text is all response


def test_the_command_line() -> None:
    given = speed.parse([])
    assert given.size is None
    assert given.steps >= 100
    assert given.out.parts[-3:] == ("benchmarks", "results", "speed.json")
    assert speed.parse(["--size", "10M", "--size", "50M"]).size == ["10M", "50M"]
    for name in contestants.COMPARED:
        assert any(name[0] in group and name[1] in group for group in contestants.GROUPS), name


def test_results_of_one_kind_do_not_replace_another(tmp_path: Path) -> None:
    file = tmp_path / "results" / "speed.json"
    settings = {"size": "1M", "steps": 3, "tunings": ("full",)}
    speed.keep(file, "cpu 1M", {"settings": settings, "results": {"full": 1}})
    speed.keep(file, "cpu 10M", {"settings": settings, "results": {"full": 5}})
    speed.keep(file, "cpu 1M", {"settings": {**settings, "tunings": ("lora",)}, "results": {"lora": 2}})
    assert json.loads(file.read_text())["cpu 1M"]["results"] == {"full": 1, "lora": 2}
    speed.keep(file, "cpu 1M", {"settings": {**settings, "steps": 4}, "results": {"lora": 3}})
    assert json.loads(file.read_text())["cpu 1M"]["results"] == {"lora": 3}
    assert json.loads(file.read_text())["cpu 10M"]["results"] == {"full": 5}


def test_what_was_not_measured_is_called_so(tmp_path: Path) -> None:
    written = table.tables({})
    assert written.count("not yet measured") == len(table.WANTED) + 1


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def call(*argv: str) -> dict[str, Any]:
        out = tmp_path / "results" / "speed.json"
        given = ["--size", "0.1M", "--steps", "2", "--warm-up", "1", "--rows", "4", "--out", str(out), *argv]
        speed.main(given)
        return json.loads(out.read_text(encoding="utf-8"))["cpu 0.1M"]

    return call


@pytest.mark.slow
def test_the_benchmark_runs(run: Callable[..., dict[str, Any]]) -> None:
    """All of it, small. What each composition computes per step follows from its definition, whatever the machine."""
    result = run("--tunings", "full")
    part = result["results"]["full"]
    assert {ratio["n"] for ratio in part["ratios"].values()} == {2}
    assert set(part["ratios"]) == {f"{above} / {below}" for above, below, _ in contestants.COMPARED}
    tokens = {name: one["tokens_per_step"] for name, one in part["contestants"].items()}
    assert tokens["data"] == tokens["trl"] == tokens["ddp"]
    assert tokens["data"]["policy"] == tokens["data"]["reference"] > 0
    assert tokens["data"]["generated"] == 0
    # The floor samples for the very rows, so as many tokens up to a rare EOS; nobody has a second forward of the policy.
    for name in ("dpp", "dpr"):
        assert tokens[name]["generated"] == pytest.approx(tokens[f"floor {name}"]["generated"], rel=0.25)
    assert 0 < tokens["dpr"]["generated"] < tokens["online"]["generated"] <= 8 * world.SHAPES["0.1M"].response
    assert all(one["policy"] == pytest.approx(one["reference"], rel=0.01) for one in tokens.values())
    assert all(one["peak_bytes"] > 0 for one in part["contestants"].values())


def test_unequal_work_is_not_compared() -> None:
    """Were one of the two given shorter texts, the benchmark would say so instead of printing a ratio."""
    made = {name: SimpleNamespace(count=contestants.Count()) for name in ("trl", "data")}
    speed.refuse_unequal_work(made)
    made["data"].count.asked["policy"] = 7
    with pytest.raises(RuntimeError, match="Not the same work"):
        speed.refuse_unequal_work(made)


# --- Over-optimisation: what is collected from a run's files -------------------------------------------------------


ENDS = {"": 0.0, "_low": -0.5, "_high": 0.5}


def test_gold_lost_since_its_peak_and_gains_in_standard_deviations(tmp_path: Path) -> None:
    import overoptimisation
    import yaml

    setting = overoptimisation.SETTINGS[0]
    folder, proxy = tmp_path / f"{setting.name}-proxy", tmp_path / "proxy"
    folder.mkdir()
    proxy.mkdir()
    about = ("train_pairs", "accuracy", "calibration_error", "calibrating_temperature")
    (proxy / "results.json").write_text(json.dumps(dict.fromkeys(about, 1)))
    # Start: mean 1, standard deviation 1. The proxy gains 2 and 4; gold gains 1, then falls to 1 below the start.
    lines = [
        {
            "step": step,
            "eval_kl": kl,
            **{f"eval_reward{end}": 1.0 + up + wide for end, wide in ENDS.items()},
            **{f"eval_gold{end}": 1.0 + down + wide for end, wide in ENDS.items()},
        }
        for step, kl, up, down in ((0, 0.0, 0, 0), (5, 1.5, 2, 1), (10, 4.0, 4, -1))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    gain = {"mean": 4.0, "low": 3.5, "high": 4.5, "n": 3}
    results = {
        "metrics": {"kl": {**gain, "mean": 4.2}, "reward_gain": gain, "gold_gain": {**gain, "mean": -1.0}},
        "samples": [{"reward_reference": value, "gold_reference": value} for value in (0.0, 1.0, 2.0)],
    }
    (folder / "results.json").write_text(json.dumps(results))
    oracles = {name: {"kind": "function", "path": f"{name}.py:reward"} for name in ("oracle", "eval_oracle")}
    (folder / "config.resolved.yaml").write_text(yaml.safe_dump(oracles))
    options = SimpleNamespace(out=tmp_path, play=Path("play"), preset="sail-dpr", steps=10, prompts=3)
    # The second has not been run.
    found = overoptimisation.collect(options, [(setting, "proxy"), (setting, "gold")])
    (run,) = found["runs"].values()
    assert [(one["part"], one["x"], one["y"]) for one in run["curves"]] == [
        ("proxy", [0.0, 1.5, 4.0], [0, 2, 4]),
        ("gold", [0.0, 1.5, 4.0], [0, 1, -1]),
    ]
    overoptimisation.draw(found, tmp_path / "picture.svg")
    row = "| usual-proxy | 4.2 | +4.00 [+3.50, +4.50] | -1.00 [+3.50, +4.50] | 1.5 | -2.00 |"
    assert row in overoptimisation.table(found)
    assert (tmp_path / "picture.svg").stat().st_size > 1000
    assert "Proxy and gold reward against KL" in (tmp_path / "report.html").read_text(encoding="utf-8")
