"""The `reward` section of a run: a reward model made from preference pairs, for `sail train-reward`. No torch here."""

from __future__ import annotations

import os
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from sail.data_config import DataSource, checked_source
from sail.section import Section


class RewardSection(Section):
    """A reward model, for oracle.kind reward_model; every key of trl.RewardConfig is accepted beside these."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(
        default=None,
        min_length=1,
        description="What sail train-reward starts from, a language model or a classifier; null = the run's model.",
    )
    train: str | DataSource | None = Field(default=None, description="Preference pairs; null = data.train.")
    eval: str | DataSource | None = Field(default=None, description="Held-out pairs; null = data.eval.")
    _sources = field_validator("train", "eval", mode="before")(checked_source)
    output_dir: str = Field(
        default="reward-model",
        min_length=1,
        description="Folder of the reward model, relative to the current directory.",
    )
    num_train_epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs.")
    learning_rate: float = Field(default=1e-5, ge=0, description="Peak learning rate.")
    per_device_train_batch_size: int = Field(
        default=8, gt=0, description="Pairs per device and forward pass."
    )
    max_length: int | None = Field(
        default=None,
        gt=0,
        description="Longest prompt with response in tokens; above it the left of the prompt is cut; null = what it can take.",
    )

    @property
    def trainer_kwargs(self) -> dict[str, Any]:
        """Everything for trl.RewardConfig(**kwargs). Texts are cut before they get there, so TRL filters none."""
        return self.model_dump(exclude={"model", "train", "eval"}) | {"max_length": None}


def with_reward_model(raw: dict[str, Any]) -> dict[str, Any]:
    """A raw run whose oracle is a reward model without a name, with the one that its section `reward` makes."""
    oracle, reward = raw.get("oracle"), raw.get("reward")
    if not isinstance(oracle, dict) or not isinstance(reward, dict):
        return raw
    if oracle.get("kind") != "reward_model" or oracle.get("model") is not None:
        return raw
    made = os.path.abspath(reward.get("output_dir") or RewardSection.model_fields["output_dir"].default)
    return {**raw, "oracle": {**oracle, "model": made}}
