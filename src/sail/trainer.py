"""SAILTrainer: transformers.Trainer whose rows are replaced, once per optimiser step, by what their routes make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoTokenizer,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput

from sail.data.collate import RowCollator
from sail.data.encode import EncodedDataset, encode_rows, eos_ids, prepare_tokenizer
from sail.data.sources import load_rows
from sail.errors import ConfigError
from sail.objective import ObjectiveSettings, RowLoss
from sail.oracles import Oracle, as_oracle, for_measuring, must_score
from sail.training import checkpoints
from sail.training.arguments import SAILConfig
from sail.training.checks import checked_mixture
from sail.training.forward import row_losses
from sail.training.generators import make_generator
from sail.training.held_out import answer_metrics, pair_batch, pair_metrics
from sail.training.memory import labelled_pairs
from sail.training.models import load_policy, with_reference
from sail.training.progress import ReadableProgress, SaveAfterEpochLines, StopAtKL
from sail.training.recorder import RunRecorder, pair_lines
from sail.training.ref_cache import remember_all
from sail.training.reference import Reference
from sail.training.resuming import find_checkpoint, identity_of
from sail.training.rounds import Rounds
from sail.training.step import PhaseTimer, StepMaker, gather, progress_at, tensors_of
from sail.training.survival import SkipNotFinite, ending_clearly
from sail.training.tracking import Tracker
from sail.training.whole import WholeWeights, check_engine

__all__ = ["SAILConfig", "SAILTrainer"]


class SAILTrainer(Trainer):
    """Aligns a language model by a mixture of offline and on-policy preference routes.

    Keyword names are DPOTrainer's. `train_dataset` holds TRL-format preference rows (or prompt-only rows for on-policy routes):
    a datasets.Dataset, a list of dicts, a path to JSONL, or an EncodedDataset. `oracle` is an Oracle or a callable
    reward(prompts, responses) or prefers(prompts, first, second); `eval_oracle` scores held-out
    answers beside it. `ref_model` defaults to the starting weights.
    """

    # compute_loss returns a sum of globally weighted rows: nothing is left to divide.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | nn.Module,
        args: SAILConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        oracle: Oracle | Callable[..., Any] | None = None,
        ref_model: str | nn.Module | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        bad_rows: str = "error",
        eval_oracle: Oracle | Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or SAILConfig()
        self.oracle = None if oracle is None else as_oracle(oracle)
        self.eval_oracle = None if eval_oracle is None else must_score(as_oracle(eval_oracle))
        tokenizer = processing_class
        if tokenizer is None:
            if not isinstance(model, str):
                raise ConfigError("processing_class is missing: give the model's tokenizer.")
            tokenizer = AutoTokenizer.from_pretrained(model)
        prepare_tokenizer(tokenizer)
        if isinstance(model, str):
            model = load_policy(model, all_weights=peft_config is None)
        if isinstance(ref_model, str):
            ref_model = load_policy(ref_model, all_weights=peft_config is None)
        ends = eos_ids(tokenizer, getattr(model, "generation_config", None))
        self._encoding: dict[str, Any] = {"tokenizer": tokenizer, "eos": ends, "bad_rows": bad_rows}
        self._lengths = {name: getattr(args, name) for name in ("max_length", "max_prompt_length")}
        train_rows, eval_rows = self._encoded(train_dataset), self._encoded(eval_dataset)
        self.mixture, self.prompt_only_share = checked_mixture(args, train_rows, ref_model, self.oracle)
        # Trainer seeds too, but later: a fresh adapter is drawn at random.
        set_seed(args.seed)
        model, frozen = with_reference(model, ref_model, peft_config, no_dropout=args.disable_dropout)
        self._metrics_of_user = kwargs.pop("compute_metrics", None)
        super().__init__(
            model=model,
            args=args,
            data_collator=RowCollator(),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            compute_metrics=self._pair_metrics,
            callbacks=callbacks,
            **kwargs,
        )
        # For releases of transformers without loss_is_scaled_for_ga: with a count given, nothing is divided either.
        self.model_accepts_loss_kwargs = True
        self._build(tokenizer, frozen)

    def _encoded(self, rows: Any) -> Any:
        """Rows as tokens; several evaluation sets by name as Trainer takes them."""
        if rows is None or isinstance(rows, EncodedDataset):
            return rows
        if isinstance(rows, dict):
            return {name: self._encoded(part) for name, part in rows.items()}
        loaded = load_rows(rows, bad_rows=self._encoding["bad_rows"])
        return encode_rows(loaded, **self._encoding, **self._lengths)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Trainer's own; rows that are not tokenised yet are."""
        return super().get_eval_dataloader(
            eval_dataset if isinstance(eval_dataset, str) else self._encoded(eval_dataset)
        )

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Trainer's own; rows that are not tokenised yet are."""
        return super().get_test_dataloader(self._encoded(test_dataset))

    def _build(self, tokenizer: Any, frozen: Any) -> None:
        """The parts of a step, and the callbacks of the run folder."""
        args: SAILConfig = self.args
        check_engine(self.accelerator)
        if frozen is not None:
            frozen = self.accelerator.prepare_model(frozen.to(args.device), evaluation_mode=True)
        pad_id = tokenizer.pad_token_id
        self.settings = ObjectiveSettings(
            **{name: getattr(args, name) for name in ObjectiveSettings.__dataclass_fields__}
        )
        self.timer = PhaseTimer()
        self.tracker = Tracker(
            self.mixture, moving_reference=args.ref_update == "round", ratio_clip=args.ratio_clip
        )
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        self.whole = WholeWeights(
            lambda: self.model,
            lambda: getattr(self, "deepspeed", None),
            reshard=plugin is None or bool(plugin.reshard_after_forward),
        )
        self.generator = make_generator(self, tokenizer)
        # What is scored without gradient runs in the precision in which the policy is trained.
        autocast = self.accelerator.autocast
        self.reference = Reference(lambda: self.model, frozen, pad_id, autocast, args.logprob_chunk)
        self.maker = StepMaker(
            mixture=self.mixture,
            options=args,
            settings=self.settings,
            generator=self.generator,
            oracle=self.oracle,
            reference=self.reference,
            seed=args.seed,
            prompt_only_share=self.prompt_only_share,
            pad_id=pad_id,
            timer=self.timer,
        )
        if args.ref_update == "round":
            self.reference.check_can_become_policy()
        if args.refresh == "round":
            self.maker.rounds = self._rounds()
        self._watch()

    def _watch(self) -> None:
        """The callbacks: the run folder, the stop at a KL limit, the progress bar."""
        args = self.args
        self.recorder = RunRecorder(
            Path(args.output_dir), self.tracker, self.maker.memory, writes=self.is_world_process_zero()
        )
        self.survival = SkipNotFinite(Path(args.output_dir), args.max_skipped_steps)
        self.add_callback(self.recorder)
        self.add_callback(self.survival)
        if args.kl_limit is not None:
            self.add_callback(StopAtKL(args.kl_limit))
        self.add_callback(SaveAfterEpochLines())
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ReadableProgress())
        else:
            self.remove_callback(PrinterCallback)

    def _rounds(self) -> Rounds:
        return Rounds(
            Path(self.args.output_dir),
            self.args.round_steps,
            maker=self.maker,
            dataset=self.train_dataset,
            loader=self.get_train_dataloader,
            accumulation=self.args.gradient_accumulation_steps,
            before_next=self._update_reference,
            show_progress=not self.args.disable_tqdm and self.is_world_process_zero(),
        )

    # ---- one optimiser step

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` continues the newest complete checkpoint of output_dir bit-identically.

        An incomplete checkpoint (the run was killed while saving) is moved aside with a message; without any complete one
        training starts from the beginning.
        """
        checkpoint = find_checkpoint(self.args, resume_from_checkpoint, self._identity(), self.warn)
        kept = None if checkpoint is None else checkpoints.run_state(checkpoint)
        self.recorder.continue_from(kept)
        self.survival.restore(None if kept is None else kept.get("survival"))
        self.generator.begin()
        self.reference.restore(checkpoints.reference_of(checkpoint))
        if self.maker.rounds is not None:
            self.maker.rounds.start(resumed=checkpoint is not None)
        if self.args.precompute_ref_log_probs and not self.reference.remember:
            self._precompute()
        self.timer.take()
        with ending_clearly(Path(self.args.output_dir)):
            return super().train(
                resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs
            )

    def _identity(self) -> dict[str, Any]:
        return identity_of(self.args, self.mixture, self.train_dataset) | checkpoints.oracles_of(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's own; as the first thing in a checkpoint it also keeps the run's state there."""
        if not (_internal_call and output_dir):
            super().save_model(output_dir, _internal_call)
            return
        state = {**self.recorder.state(), "weights_only": self.args.save_only_model, "run": self._identity()}
        state["survival"] = self.survival.state()
        if self.args.should_save:
            checkpoints.begin_checkpoint(Path(output_dir))
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            state["reference"] = self.reference.save(Path(output_dir) / checkpoints.REFERENCE_FILE)
            checkpoints.write_run_state(Path(output_dir), state)

    def _precompute(self) -> None:
        if self.train_dataset is not None and self.mixture.offline:
            self.warn(remember_all(self.reference, self.train_dataset, self.args))

    def _update_reference(self) -> None:
        """At the first step of a round but the run's first: ref_update."""
        if self.args.ref_update == "round":
            self.reference.become_policy()
            if self.args.precompute_ref_log_probs:
                self._precompute()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """All micro-batches of the step at once: their rows are routed, answered, labelled and made into tensors."""
        if 0 < self.state.max_steps <= self.state.global_step:
            # A finished run was resumed: Trainer would do one step too many.
            return [], 0
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rounds, now, last = self.maker.rounds, self.state.global_step, self.state.max_steps
        rows = [batch["rows"].rows for batch in batches]
        with self.whole:
            if rounds is not None:
                rounds.begin(now, last)
            step = self.maker.make(rows, now, self.args.device, progress_at(now, last))
        self.tracker.add_step(step)
        if step.active_rows == 0:
            self.warn(f"Step {self.state.global_step + 1}: every label abstained, so its pair loss is zero.")
        if self.args.record_pairs and self.mixture.on_policy:
            self.recorder.write_pairs(now, gather(pair_lines(step, rounds.number if rounds else None)))
        if self.mixture.replays:
            self.recorder.remember(gather(labelled_pairs(step.examples)))
        dtype = next(self.model.parameters()).dtype
        return [tensors_of(batch, dtype) for batch in step.batches], len(step.examples)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's own, with its seconds counted under `policy` (forward and backward)."""
        with self.timer.phase("policy"):
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The sum of the micro-batch's weighted row losses: one forward over all first, then all second responses."""
        result = self.row_losses(model, inputs)
        self.tracker.add_result(result, inputs)
        loss = result.loss.sum()
        return (loss, {"margin": result.margin}) if return_outputs else loss

    def row_losses(self, model: nn.Module, batch: dict[str, Any]) -> RowLoss:
        """The objective of each row of a prepared batch."""
        tempered = self.args.temperature if self.mixture.corrected else 1.0
        return row_losses(model, batch, self.settings, tempered, self.args.logprob_chunk)

    # ---- logging and evaluation

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds what the steps since the last line showed to Trainer's training log lines."""
        if "loss" in logs:
            logs = {**logs, **self.tracker.take(self.args.temperature), **self.generator.numbers()}
            logs["step/skipped"] = self.survival.skipped
            logs.update({f"seconds/{name}": round(seconds, 6) for name, seconds in self.timer.take().items()})
            if not math.isfinite(logs["loss"]):
                self.warn(
                    f"Step {self.state.global_step}: the loss is {logs['loss']}; the weights may be lost."
                )
        elif "train_loss" in logs:
            logs = {**logs, "train_loss": self.tracker.mean_loss(self.state.global_step)}
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Held-out pairs as the data route: loss, margin and whether the row has a pair, (B, 3)."""
        rows = inputs["rows"].rows
        numbers = torch.zeros(len(rows), 3)
        places = [place for place, row in enumerate(rows) if row["chosen_ids"] is not None]
        if places:
            result = self._score_pairs(model, [rows[place] for place in places])
            table = torch.stack([result.pair_loss, result.margin, torch.ones_like(result.margin)], dim=1)
            numbers[places] = table.float().cpu()
        numbers = numbers.to(self.args.device)
        mean = numbers[places, 0].mean() if places else numbers.new_zeros(())
        return mean, numbers, numbers[:, :1]

    def _score_pairs(self, model: nn.Module, rows: Sequence[dict[str, Any]]) -> RowLoss:
        batch = pair_batch(rows, self.reference, self.maker.pad_id, self.args.device)
        batch = tensors_of(batch, next(self.model.parameters()).dtype)
        moved = {
            key: value.to(self.args.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        with torch.no_grad():
            return self.row_losses(model, moved)

    def _pair_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        numbers = pair_metrics(prediction.predictions)
        return {**numbers, **(self._metrics_of_user(prediction) if self._metrics_of_user else {})}

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Trainer's own over held-out pairs, then `eval_samples` held-out prompts answered."""
        with self.whole:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            dataset = (args[0] if args else kwargs["dataloader"]).dataset
            if dataset.prompt_only == len(dataset):
                # Without a pair there is no loss; Trainer would give 0, and take it for the best.
                output.metrics.pop(f"{metric_key_prefix}_loss", None)
            count = min(self.args.eval_samples, len(dataset))
            if count:
                numbers = self._answers([dataset[position] for position in range(count)])
                output.metrics.update({f"{metric_key_prefix}_{name}": one for name, one in numbers.items()})
        return output

    def _answers(self, rows: list[dict[str, Any]]) -> dict[str, float | None]:
        with self.accelerator.autocast():
            numbers = answer_metrics(
                rows,
                generator=self.generator,
                reference=self.reference,
                oracle=for_measuring(self.oracle),
                gold=for_measuring(self.eval_oracle),
                seed=self.args.seed,
                pad_id=self.maker.pad_id,
                temperature=self.args.temperature,
                batch_size=2 * self.args.per_device_eval_batch_size,
                warn=self.warn,
            )
        if self.is_world_process_zero() and "reward" in numbers:
            self.tracker.counters.eval_calls += len(rows)
        return numbers

    def warn(self, message: str) -> None:
        """A message for a person, once per event, from the main process."""
        if self.is_world_process_zero():
            tqdm.write(f"sail: {message}")
