"""What is refused when a trainer is built: the rules, with everything known that a run file does not say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from sail.data.encode import EncodedDataset
from sail.errors import ConfigError
from sail.mixture import Mixture
from sail.oracles import Oracle
from sail.oracles.calls import CallOracle
from sail.rules import Resources, check, kl_is_logged
from sail.training.arguments import SAILConfig


def checked_mixture(
    args: SAILConfig, rows: EncodedDataset | None, ref_model: Any, oracle: Oracle | None
) -> tuple[Mixture, float]:
    """The mixture of the run, and the share of training rows that have a prompt only; ConfigError with the way out."""
    if args.process_index == 0:
        for advice in oracle_advice(oracle):
            warnings.warn(advice, stacklevel=3)
    prompt_only = 0 if rows is None else rows.prompt_only
    have = Resources(
        oracle=oracle is not None,
        ref_model=ref_model is not None,
        pairs=None if rows is None else prompt_only < len(rows),
        prompts=prompt_only > 0,
        oracle_may_abstain=None if oracle is None else oracle.may_abstain,
        oracle_scores=None if oracle is None else oracle.own_scores() is not None,
    )
    mixture = check(args, have)
    evaluates = str(args.eval_strategy.value) != "no"
    if args.kl_limit is not None and not evaluates and not kl_is_logged(args, mixture):
        raise ConfigError(
            "kl_limit is estimated at evaluations here, and there are none. Set eval_strategy (and eval_steps)."
        )
    if args.refresh == "round" and args.ignore_data_skip:
        raise ConfigError(
            "ignore_data_skip: true cannot be used with refresh: round: a resumed run would meet other rows than the round was "
            "sampled for. Remove it."
        )
    return mixture, 0.0 if rows is None else mixture.check_prompt_share(prompt_only, len(rows))


def oracle_advice(oracle: Oracle | None) -> list[str]:
    """What a run file sets and Python does not: both orders where calls are paid, and a ledger that outlives the process."""
    found = []
    for paid, symmetric in _paid(oracle, False):
        if not symmetric:
            found.append(
                f"sail: {paid.name} is asked in one order only, so its bias for a place goes into the labels. Wrap it: "
                "sail.oracles.wrappers.BothOrders(oracle), or OneOrder at half the price."
            )
        if not paid.was_given_a_ledger:
            found.append(
                f"sail: the answers of {paid.name} are kept in memory only: a resumed run pays for them again, and its caps "
                "begin anew. Give it a ledger: ledger=sail.oracles.ledger.Ledger(output_dir + '/ledger.sqlite')."
            )
    return found


def _paid(oracle: Oracle | None, symmetric: bool) -> Iterator[tuple[CallOracle, bool]]:
    """Every oracle of paid calls inside, and whether the order of a pair is taken care of."""
    if oracle is None:
        return
    symmetric = symmetric or oracle.symmetric
    if isinstance(oracle, CallOracle):
        yield oracle, symmetric
    for inside in (getattr(oracle, "inner", None), *getattr(oracle, "members", ())):
        yield from _paid(inside, symmetric)
