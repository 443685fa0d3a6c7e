"""What is refused when a trainer is built: the rules, with everything known that a run file does not say."""

from __future__ import annotations

from typing import Any

from sail.data.encode import EncodedDataset
from sail.errors import ConfigError
from sail.mixture import Mixture
from sail.oracles import Oracle, ScoringOracle
from sail.rules import Resources, check, kl_is_logged
from sail.training.arguments import SAILConfig


def checked_mixture(
    args: SAILConfig, rows: EncodedDataset | None, ref_model: Any, oracle: Oracle | None
) -> tuple[Mixture, float]:
    """The mixture of the run, and the share of training rows that have a prompt only; ConfigError with the way out."""
    prompt_only = 0 if rows is None else rows.prompt_only
    have = Resources(
        oracle=oracle is not None,
        ref_model=ref_model is not None,
        pairs=None if rows is None else prompt_only < len(rows),
        prompts=prompt_only > 0,
        oracle_may_abstain=None if oracle is None else oracle.may_abstain,
        oracle_scores=None if oracle is None else isinstance(oracle, ScoringOracle),
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
