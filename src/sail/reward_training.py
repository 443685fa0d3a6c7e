"""A reward model from preference pairs, on TRL's RewardTrainer: loss = -log sigmoid(score(chosen) - score(rejected)).

Texts are made into ids by the same code with which the finished reward model reads them as an oracle (data/whole.py), so that it
is asked what it was taught.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed
from transformers.utils import logging as transformers_logging

from sail.data.bad_rows import BadRows
from sail.data.encode import prepare_tokenizer
from sail.data.formats import Row
from sail.data.whole import WholeInput, cut_to, encode_whole, padded
from sail.errors import ConfigError, DataError, MissingExtraError
from sail.oracles.reward_model import length_limit, load_tokenizer, refuse_folder
from sail.sft import device_defaults
from sail.training.models import merged
from sail.training.progress import ReadableProgress, StopOnSignal


@dataclass(frozen=True)
class RewardPairs:
    """Pairs as a reward model reads them, and what happened to the others: cut at max_length, equal as ids, unreadable.

    rows: those that can be read, the equal ones among them."""

    pairs: list[tuple[WholeInput, WholeInput]]
    cut: int
    identical: int
    skipped: list[str]
    rows: list[Row]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over all ids in order."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(repr([one.ids for one in pair]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Start:
    """What training begins with; `new` names the weights that had to be made: the score head of a language model."""

    model: Any
    tokenizer: Any
    new: tuple[str, ...]
    max_length: int | None


def load_start(name: str, *, tokenizer: str | None, max_length: int | None, seed: int) -> Start:
    """A classifier with one output in float32, from a classifier or from a language model, which gets a new score head.

    ConfigError for a classifier with other outputs, remote code, weights that are not safetensors, and a max_length above what
    the model can take.
    """
    refuse_folder(name)
    made = load_tokenizer(tokenizer or name)
    prepare_tokenizer(made)
    set_seed(seed)  # the new head is a function of the run's seed
    loud = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of the missing head is what `new` says
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        kinds = getattr(config, "architectures", None) or [""]
        if "SequenceClassification" in kinds[0] and config.num_labels != 1:
            raise ConfigError(
                f"{name} has {config.num_labels} outputs; a reward model has one. Start from a language model, or from a "
                "classifier with one output."
            )
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name,
            num_labels=1,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"No reward model can be made of {name!r}: {first} Give a folder or name of a language model."
        ) from error
    finally:
        transformers_logging.set_verbosity(loud)
    limit = length_limit(model, made, max_length, option="reward.max_length")
    if max_length is not None:
        made.model_max_length = max_length  # saved, so that the oracle reads as far as it was taught to
    return Start(model, made, tuple(sorted(loading["missing_keys"])), limit)


def encode_pairs(rows: Sequence[Row], start: Start, *, bad_rows: str) -> RewardPairs:
    """All pairs as ids. A pair that is the same as ids teaches nothing: it is left out, and counted."""
    bad, pairs, kept, cut, identical = BadRows(bad_rows), [], [], 0, 0
    for row in rows:
        try:
            both = [
                cut_to(
                    encode_whole(start.tokenizer, row.prompt, text or ""), start.max_length, start.tokenizer
                )
                for text in (row.chosen, row.rejected)
            ]
        except DataError as error:
            bad.add(DataError(f"{row.origin}: {error}"))
            continue
        kept.append(row)
        (chosen, chosen_cut, _), (rejected, rejected_cut, _) = both
        identical += chosen.ids == rejected.ids
        cut += chosen_cut + rejected_cut
        if chosen.ids != rejected.ids:
            pairs.append((chosen, rejected))
    return RewardPairs(pairs, cut, identical, bad.finish(len(pairs), "tokenising the pairs"), kept)


class PairCollator:
    """A batch for TRL's loss: the chosen texts, then the rejected ones; right padded, with segment ids where there are any."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = []
        for which in ("chosen", "rejected"):
            for example in examples:
                segments = example.get(f"{which}_segments")
                ids = tuple(example[f"{which}_ids"])
                inputs.append(WholeInput(ids, None if segments is None else tuple(segments), 0))
        return padded(inputs, self.pad_id)


def make_reward_trainer(
    start: Start,
    train: RewardPairs,
    held_out: RewardPairs | None,
    arguments: dict[str, Any],
    *,
    peft_config: Any = None,
) -> Any:
    """TRL's RewardTrainer over the encoded pairs. `arguments` are trl.RewardConfig's. ConfigError on a key it does not know."""
    try:
        from datasets import Dataset
        from transformers import PrinterCallback, ProgressCallback
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        raise MissingExtraError(
            'sail train-reward needs TRL and datasets. Install them: pip install "sail-align[reward-model]"'
        ) from error
    arguments = {"report_to": [], "logging_steps": 10, "save_total_limit": 1, **arguments}
    arguments |= {"max_length": None, "remove_unused_columns": False}
    try:
        config = RewardConfig(**{**device_defaults(arguments, RewardConfig), **arguments})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trl.RewardConfig refused a value of reward: {error}") from error
    trainer = RewardTrainer(
        model=start.model,
        args=config,
        train_dataset=Dataset.from_list(_columns(train)),
        eval_dataset=Dataset.from_list(_columns(held_out)) if held_out and held_out.pairs else None,
        processing_class=start.tokenizer,
        data_collator=PairCollator(start.tokenizer.pad_token_id),
        peft_config=peft_config,
        callbacks=[StopOnSignal()],
    )
    trainer.remove_callback(PrinterCallback)
    if not config.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ReadableProgress("reward"))
    return trainer


def save_reward_model(trainer: Any, folder: Path) -> None:
    """Model and tokenizer as an ordinary folder; an adapter is merged into its base."""
    model = merged(trainer.accelerator.unwrap_model(trainer.model))
    model.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)


def _columns(rows: RewardPairs) -> list[dict[str, list[int]]]:
    made = []
    for chosen, rejected in rows.pairs:
        columns = {"chosen_ids": list(chosen.ids), "rejected_ids": list(rejected.ids)}
        if chosen.segments is not None and rejected.segments is not None:
            columns |= {
                "chosen_segments": list(chosen.segments),
                "rejected_segments": list(rejected.segments),
            }
        made.append(columns)
    return made
