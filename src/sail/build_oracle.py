"""From the oracle section of a run to oracle objects: the kind, then what is wrapped around it, inside first; and its ledger."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sail.config import RunConfig
from sail.data.encode import EncodedDataset
from sail.errors import ConfigError, MissingExtraError
from sail.evaluation.orders import orders_of
from sail.oracle_config import (
    CommitteeOracle,
    FunctionOracle,
    JudgeOracle,
    PeopleOracle,
    RewardModelOracle,
    is_paid,
    keeps_ledger,
)
from sail.oracle_wraps import CapsConfig, NoiseWrap
from sail.oracles import Oracle, as_oracle, for_measuring, load_callable, without_people
from sail.oracles.calls import CallOracle, Caps, Patience
from sail.oracles.ledger import LEDGER, Ledger
from sail.oracles.ledger_place import run_name
from sail.oracles.wrappers import BothOrders, Budgeted, Committee, Noise, OneOrder, Remember
from sail.types import Pair

_EXTRAS = {"judge": "judge", "people": "annotate", "reward_model": "reward-model"}
"""What to install for a kind."""


def make_ledger(config: RunConfig) -> Ledger | None:
    """The ledger of the run, or None where it needs none. Its file is not touched before it is used.

    Without oracle.ledger it is ledger.sqlite in the run folder. The run's name in it is the run folder's place as seen from the
    ledger's, so that a folder may be moved together with its ledger.
    """
    sections = [one for one in (config.oracle, config.eval_oracle) if one is not None]
    if not any(keeps_ledger(one) for one in sections):
        return None
    folder = Path(config.train.output_dir)
    named = ledger_path(config)
    path = folder / LEDGER if named is None else Path(named)
    return Ledger(path, run=run_name(folder, path), at_once=False)


def make_oracle(config: RunConfig, ledger: Ledger | None = None) -> Oracle | None:
    """The oracle of the run, or None. `ledger`: that of make_ledger; without one, what needs a ledger keeps it in memory."""
    if config.oracle is None:
        return None
    return _Builder(config, ledger or Ledger(":memory:", at_once=False)).build(config.oracle, "oracle")


def make_eval_oracle(config: RunConfig, ledger: Ledger | None = None) -> Oracle | None:
    """What scores held-out answers beside the oracle, or None; `ledger` as in make_oracle."""
    if config.eval_oracle is None:
        return None
    return _Builder(config, ledger or Ledger(":memory:", at_once=False)).build(
        config.eval_oracle, "eval_oracle"
    )


def ledger_path(config: RunConfig) -> str | None:
    """The ledger's file that the user named in either oracle section; ConfigError if they name two."""
    named = {
        one.ledger
        for one in (config.oracle, config.eval_oracle)
        if one is not None and one.ledger is not None
    }
    if len(named) > 1:
        raise ConfigError(
            "oracle.ledger and eval_oracle.ledger are two files, and a run keeps one. Set oracle.ledger only."
        )
    return next(iter(named), None)


def oracle_of_run(config: RunConfig, run: Path | None) -> Oracle | None:
    """The oracle for measuring a finished run, with the ledger in its folder `run`, so that nothing is paid twice."""
    if run is not None:
        config = config.model_copy(update={"train": config.train.model_copy(update={"output_dir": str(run)})})
    return for_measuring(make_oracle(config, make_ledger(config)))


def begin_ledger(ledger: Ledger, *, overwrite: bool) -> None:
    """Open the ledger when the run begins. The calls of an overwritten run stay in it: they answer questions, and no longer count
    for its caps."""
    ledger.open()
    if overwrite:
        ledger.retire()


def ask_once(oracle: Oracle | None, dataset: EncodedDataset, config: RunConfig) -> list[str]:
    """The oracle about the first pairs of the data, two if they cost money, so that one that cannot work is found now."""
    most = 2 if config.oracle is not None and is_paid(config.oracle) else 8
    rows = [row for row in (dataset[place] for place in range(min(most, len(dataset)))) if row["chosen"]]
    oracle = without_people(oracle)
    if oracle is None or not rows:
        return []
    given = oracle.compare([Pair(row["prompt"], row["chosen"] or "", row["rejected"] or "") for row in rows])
    agree = sum(one.first_wins is not None and one.first_wins > 0.5 for one in given)
    silent = [one.reason for one in given if one.first_wins is None]
    return [
        f"oracle {oracle.name}, asked about the first {len(rows)} pairs: prefers the chosen response of {agree}"
        + (f", abstains on {len(silent)} ({silent[0]})" if silent else "")
    ]


def oracle_results(oracle: Oracle | None, ledger: Ledger | None) -> dict[str, Any] | None:
    """The part `oracle` of results.json: what the run has spent in all its processes and resumes, and what its wrappers counted
    in this process. None without an oracle."""
    if oracle is None:
        return None
    results: dict[str, Any] = {"name": oracle.name}
    if ledger is not None:
        spent = ledger.spent()
        results.update(
            calls=spent.calls,
            tokens=spent.tokens,
            cost=spent.cost,
            from_ledger=spent.found,
            failed=spent.failed,
            possibly_paid=spent.open,
            remembered=spent.remembered,
            orders=orders_of(ledger),
        )
    return {**results, **oracle.report()}


class TellStep(TrainerCallback):
    """Tells the ledger which optimiser step asks: the number that pairs.jsonl.gz uses too."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first step, or the one that a resumed run continues with."""
        self.ledger.step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next one."""
        self.ledger.step = state.global_step


class _Builder:
    """Makes oracles of config sections; all of a run share one ledger."""

    def __init__(self, config: RunConfig, ledger: Ledger) -> None:
        self.folder = Path(config.train.output_dir)
        self.ledger = ledger

    def build(self, section: Any, place: str) -> Oracle:
        """The section's oracle with everything around it; `place`: its dotted key in the run file, by which its caps go."""
        oracle = self._plain(section, place)
        oracle.place = place
        for wrap in section.wrap:
            oracle = self._wrapped(oracle, wrap, place)
            oracle.place = place
        return oracle

    def _plain(self, section: Any, place: str) -> Oracle:
        if isinstance(section, FunctionOracle):
            name = Path(section.path).name
            return as_oracle(load_callable(section.path), temperature=section.temperature, name=name)
        if isinstance(section, RewardModelOracle):
            return self._reward_model(section)
        if isinstance(section, JudgeOracle):
            return self._judge(section)
        if isinstance(section, PeopleOracle):
            return self._people(section)
        assert isinstance(section, CommitteeOracle)
        members = [
            self.build(member, f"{place}.members.{number}") for number, member in enumerate(section.members)
        ]
        return Committee(members, abstain_above=section.abstain_above, at_least=section.at_least)

    def _wrapped(self, oracle: Oracle, wrap: Any, place: str) -> Oracle:
        if isinstance(wrap, str):
            if wrap == "remember":
                return Remember(oracle, self.ledger)
            return BothOrders(oracle) if wrap == "both_orders" else OneOrder(oracle)
        if isinstance(wrap, NoiseWrap):
            return Noise(oracle, wrap.noise, seed=wrap.seed)
        # What is asked can only be counted over resumes where it is remembered.
        inner = oracle if isinstance(oracle, Remember) else Remember(oracle, self.ledger)
        inner.place = place
        return Budgeted(inner, wrap.budget.calls, at_cap=wrap.budget.at_cap)

    def _reward_model(self, section: RewardModelOracle) -> Oracle:
        options = section.model_dump(exclude={"kind", "model", "wrap", "ledger"})
        made: Oracle = _part("reward_model", "RewardModel")(section.model, **options)
        return made

    def _judge(self, section: JudgeOracle) -> Oracle:
        part = "Judge" if section.mode == "pairwise" else "ScoreJudge"
        shared = ("api_key_env", "rubric", "temperature", "max_tokens", "timeout", "extra", "concurrency")
        options = {name: getattr(section, name) for name in shared}
        if section.mode == "pairwise":
            options["soft"] = section.soft
        else:
            options["score_temperature"] = section.score_temperature
        if section.prices is not None:
            per_million = section.prices.model_dump()
            options["prices"] = _part("judge", "Prices")(per_million["in"], per_million["out"])
        made: CallOracle = _part("judge", part)(
            section.url,
            section.model,
            ledger=self.ledger,
            caps=_caps(section.caps),
            patience=Patience(attempts=section.attempts),
            **options,
        )
        made.budget.call_seconds = section.timeout
        return made

    def _people(self, section: PeopleOracle) -> Oracle:
        options = {name: getattr(section, name) for name in ("annotators", "deadline", "question", "port")}
        made: Oracle = _part("people", "People")(self.folder, **options)
        return made


def _caps(section: CapsConfig) -> Caps:
    return Caps(**section.model_dump())


def _part(kind: str, name: str) -> Any:
    """A class of sail.oracles.<kind>, imported when a run needs it: it may need packages that not everybody installs."""
    try:
        return getattr(import_module(f"sail.oracles.{kind}"), name)
    except ImportError as error:
        if (error.name or "").startswith("sail"):
            raise ConfigError(f"oracle.kind {kind} is not part of this version of sail.") from error
        raise MissingExtraError(
            f'oracle.kind {kind} needs {error.name}. Install it: pip install "sail-align[{_EXTRAS[kind]}]"'
        ) from error
