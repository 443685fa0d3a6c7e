"""One alignment run of the study, and what is kept of it: per held-out prompt, at each checkpoint, gold reward and log-ratio."""

from __future__ import annotations

import gc
import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from plan import PROMPTS, ROWS, Run
from start import Start
from transformers import TrainerCallback

from sail.generation.scoring import score_sequences
from sail.oracles.function import PreferenceFunction, RewardFunction
from sail.play import ALIGN
from sail.playground.gold import bradley_terry, gold_reward, is_harmful, is_refusal, reward
from sail.trainer import SAILConfig, SAILTrainer

Row = dict[str, Any]


def noisy(share: float) -> Any:
    """The gold rule's verdict, turned round for a fixed `share` of all pairs, chosen by a hash of their texts."""

    def prefers(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
        told = []
        for prompt, one, two in zip(prompts, first, second, strict=True):
            p = bradley_terry(prompt, one, two)
            both = "\n".join([prompt, *sorted((one, two))])
            drawn = int.from_bytes(hashlib.sha256(both.encode()).digest()[:7], "big") / 2**56
            told.append(1.0 - p if drawn < share else p)
        return told

    return PreferenceFunction(prefers, name=f"gold, {share:.0%} turned round")


class Watch(TrainerCallback):
    """At the chosen steps: one seeded sample per held-out prompt, scored by the gold rule and by the start."""

    def __init__(self, trainer: SAILTrainer, start: Any, steps: tuple[int, ...], seed: int) -> None:
        self.trainer, self.steps, self.seed = trainer, steps, seed
        self.checkpoints: list[Row] = []
        self.seconds = 0.0
        self.start = start

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, outside the run's own time."""
        if state.global_step in self.steps:
            began = time.process_time()
            self.checkpoints.append(
                {
                    "step": state.global_step,
                    "calls": self.trainer.tracker.counters.oracle_calls,
                    **self.measure(),
                }
            )
            self.seconds += time.process_time() - began

    def measure(self) -> Row:
        """Reward, log pi / pi_start (nats) and length of each prompt's answer; share of refusals, harmful and harmless."""
        rows = [self.trainer.eval_dataset[place] for place in range(PROMPTS)]
        keys = [(self.seed, "evidence", int(row["index"])) for row in rows]
        sampled = self.trainer.generator.sample([row["prompt_ids"] for row in rows], keys)
        sequences = [(row["prompt_ids"], list(one.ids)) for row, one in zip(rows, sampled, strict=True)]
        scores = score_sequences(self.start, sequences, pad_id=self.trainer.maker.pad_id, batch_size=128)
        answered = [(row["prompt"], one.text) for row, one in zip(rows, sampled, strict=True)]
        refused = {
            kind: [is_refusal(text) for prompt, text in answered if is_harmful(prompt) == kind]
            for kind in (True, False)
        }
        return {
            "reward": [round(gold_reward(*pair), 2) for pair in answered],
            "kl": [round(one.log_prob - score, 3) for one, score in zip(sampled, scores, strict=True)],
            "length": sum(len(one.ids) for one in sampled) / len(sampled),
            "refusals": [sum(refused[kind]) / len(refused[kind]) for kind in (True, False)],
            "distinct": len({text for _, text in answered}) / len(answered),
        }


def run(spec: Run, start: Start) -> Row:
    """Train as the plan says and return the record of the run."""
    folder = Path(tempfile.mkdtemp(prefix="sail-evidence-"))
    options = {
        **ALIGN,
        "per_device_train_batch_size": ROWS,
        "seed": spec.seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "record_pairs": False,
        "dataloader_pin_memory": False,
        "logging_steps": 25,
        "output_dir": str(folder),
        **spec.options,
        "max_steps": max(spec.steps, 1),
    }
    try:
        trainer = SAILTrainer(
            start.model(),
            args=SAILConfig(**options),
            train_dataset=start.train,
            eval_dataset=start.held_out,
            processing_class=start.tokenizer,
            oracle=noisy(spec.noise) if spec.noise else RewardFunction(reward, name="gold"),
            ref_model=start.model(),
        )
        watch = Watch(
            trainer,
            start.model().eval(),
            (*(step for step in spec.evaluate_at if step < spec.steps), spec.steps),
            spec.seed,
        )
        trainer.add_callback(watch)
        began = time.process_time()
        if spec.steps:
            trainer.train()
        else:
            watch.checkpoints.append({"step": 0, "calls": 0, **watch.measure()})
        seconds = time.process_time() - began - watch.seconds
        last = ([line for line in trainer.state.log_history if "loss" in line] or [{}])[-1]
        return {
            "part": spec.part,
            "name": spec.name,
            "seed": spec.seed,
            "steps": spec.steps,
            "options": {**spec.options, **({"noise": spec.noise} if spec.noise else {})},
            "seconds": round(seconds, 1),
            "last": {
                key: last[key]
                for key in ("loss", "pair/accuracy", "label/entropy", "response/entropy")
                if last.get(key) is not None
            },
            "checkpoints": watch.checkpoints,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()
        torch.manual_seed(0)
