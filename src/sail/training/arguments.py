"""SAILConfig: sail's own options beside every field of transformers.TrainingArguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from sail.errors import ConfigError
from sail.fields import AlignmentFields
from sail.mixture import mixture_of
from sail.rules import apply_preset


@dataclass
class SAILConfig(AlignmentFields, TrainingArguments):
    """Arguments of SAILTrainer. The options of AlignmentFields are explained in sail/fields.py, the rest by transformers.

    Optimiser and learning rate default to TRL's (AdamW, 1e-6). bf16 defaults to whether the device supports it. A preset's
    fixed options are set here; combinations that cannot be run are refused when the trainer is built.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Initial learning rate of AdamW."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many optimiser steps."})
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 autocast; null: yes on a GPU that supports it."}
    )
    # As JSON too, because an argument parser cannot read a mapping.
    routes: dict[str, Any] | str | None = field(  # type: ignore[assignment]
        default=None, metadata=dict(AlignmentFields.__dataclass_fields__["routes"].metadata)
    )
    # The logged loss is the tracker's, which keeps a NaN; Trainer's filter would wait for the device in every micro-batch.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Trainer's own loss is not shown; nothing to filter."}
    )
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Must stay false: rows are not model inputs."}
    )

    def __post_init__(self) -> None:
        """Fill in what depends on the machine and the preset; ConfigError on a setting that cannot work."""
        if self.remove_unused_columns:
            raise ConfigError(
                "remove_unused_columns must be false: rows carry prompts and responses, not model inputs. Remove it."
            )
        if self.bf16 is None:
            self.bf16 = (
                not self.fp16
                and not self.use_cpu
                and torch.cuda.is_available()
                and torch.cuda.is_bf16_supported()
            )
        if self.neftune_noise_alpha or self.label_smoothing_factor:
            raise ConfigError(
                "neftune_noise_alpha and label_smoothing_factor have no meaning here: responses must be scored as they were "
                "sampled, and preferences have labels of their own. Remove them."
            )
        if self.train_sampling_strategy == "group_by_length":
            raise ConfigError(
                "train_sampling_strategy: group_by_length is not supported: a row's length is known once it is sampled."
            )
        # Else the data order would come from whatever the global random state is when training starts.
        if getattr(self, "data_seed", None) is None:
            self.data_seed = self.seed
        for name, value in apply_preset(self).items():
            setattr(self, name, value)
        if self.preset is not None or self.routes is not None:
            mixture_of(self.preset, self.routes)
        super().__post_init__()
