"""Whether the texts of a run fit into the model's context, and whether its settings measure what they seem to."""

from __future__ import annotations

from typing import Any

from sail.config import RunConfig
from sail.data.encode import EncodedDataset
from sail.errors import ConfigError


def context_of(name: str, *, trust: bool = False) -> int | None:
    """Positions that a model has for prompt and answer together, from its files alone; None where they set no limit."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, trust_remote_code=trust)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def check_fit(config: RunConfig, train: EncodedDataset | None, held_out: EncodedDataset | None) -> list[str]:
    """Remarks about the run's settings; ConfigError if its longest text is longer than what the model has positions for.

    Looked at are the rows that there are, not max_length: a dataset pair, and a sampled response behind the longest prompt.
    Beyond its positions one model crashes, and another says anything.
    """
    options, context = config.alignment, context_of(config.model, trust=config.trust_remote_code)
    if context is not None:
        pair, prompt = _longest(train)
        held_pair, held_prompt = _longest(held_out)
        if max(pair, held_pair) > context:
            raise ConfigError(
                f"{config.model} has {context} positions, and the longest pair {max(pair, held_pair)} tokens. Set "
                f"train.max_length to at most {context}."
            )
        answered = held_prompt if options.eval_samples or options.final_samples else 0
        asked = max(prompt if config.mixture.on_policy else 0, answered)
        if asked and asked + options.max_new_tokens > context:
            room = context - options.max_new_tokens
            other = (
                f", or train.max_prompt_length to at most {room} with data.bad_rows: skip" if room > 0 else ""
            )
            raise ConfigError(
                f"{config.model} has {context} positions: behind the longest prompt ({asked} tokens) there is no room for "
                f"responses of {options.max_new_tokens}. Set train.max_new_tokens to at most {max(context - asked, 1)}{other}."
            )
    return _remarks(config)


def _remarks(config: RunConfig) -> list[str]:
    """Settings that are allowed and do nothing."""
    strategy: Any = config.train.model_dump().get("eval_strategy", "no")
    if config.alignment.eval_samples and str(strategy) == "no":
        return [
            "eval_samples does nothing before the end of the run: eval_strategy is no. For curves and frontiers set "
            "train.eval_strategy: steps and train.eval_steps."
        ]
    return []


def _longest(rows: EncodedDataset | None) -> tuple[int, int]:
    """Tokens of the longest prompt with a response, and of the longest prompt."""
    pairs, prompts = [0], [0]
    for row in [] if rows is None else rows.rows:
        prompts.append(len(row["prompt_ids"]))
        answers = [len(ids) for ids in (row["chosen_ids"], row["rejected_ids"]) if ids is not None]
        pairs.append(len(row["prompt_ids"]) + max(answers, default=0))
    return max(pairs), max(prompts)
