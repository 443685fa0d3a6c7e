"""The work of a step, counted: what each route costs over plain DPO, in forward and backward passes, responses and tokens.

data          per micro-batch one forward and backward of the policy, one forward of the reference
ddp           the same
dpp, dpr      plus one generate call per optimiser step. Nothing else: F and its baseline come from the log-probs
              recorded while sampling, and the reference forward of sampled rows stands where that of dataset rows stood
dpr           plus one oracle call per pair whose responses differ
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny import PAD, make_model, make_pairs, make_trainer, reward
from transformers import TrainerCallback

from sail.generation.joined import pays
from sail.online import collate
from sail.training.step import Step

# PEFT and TRL use names that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

STEPS, MICRO, ROWS = 3, 2, 4
MAX_NEW = 8


@dataclass
class Work:
    """What the models did in one optimiser step. Rows (one a response) and tokens are summed over forward passes; padding is
    counted where pairs are joined, whose prompt is read once."""

    train_forwards: int = 0
    train_rows: int = 0
    train_tokens: int = 0
    backwards: int = 0
    other_policy_forwards: int = 0
    reference_forwards: int = 0
    reference_rows: int = 0
    reference_tokens: int = 0
    generate_calls: int = 0
    generate_rows: int = 0
    decode_forwards: int = 0
    decode_positions: int = 0
    oracle_pairs: int = 0


@dataclass
class Meter(TrainerCallback):
    """Counts through hooks on the modules; one Work per optimiser step, and one for what came before the first."""

    now: Work = field(default_factory=Work)
    before: Work | None = None
    steps: list[Work] = field(default_factory=list)
    made: list[Step] = field(default_factory=list)
    generating: bool = False

    def watch(self, trainer: Any) -> None:
        """Hook into policy, reference, generate and the step maker of a trainer that was not started yet."""
        trainer.add_callback(self)
        policy = trainer.model
        policy.register_forward_hook(self._policy_forward, with_kwargs=True)
        if trainer.reference.frozen is not None:
            trainer.reference.frozen.register_forward_hook(self._reference_forward, with_kwargs=True)
        base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        if base is not policy:
            base.register_forward_hook(self._decode_forward, with_kwargs=True)
        base.generate = self._generate(base.generate)
        trainer.maker.make = self._make(trainer.maker.make)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was counted until now was preparation."""
        self.before, self.now = self.now, Work()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step is complete."""
        self.steps.append(self.now)
        self.now = Work()

    def oracle(self, prompts: list[str], responses: list[str]) -> list[float]:
        """The reward function, counted."""
        self.now.oracle_pairs += len(responses) // 2
        return reward(prompts, responses)

    def _policy_forward(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self.generating:
            self._decode_forward(module, args, kwargs, output)
        elif torch.is_grad_enabled():
            self.now.train_forwards += 1
            rows, tokens = read(kwargs)
            self.now.train_rows += rows
            self.now.train_tokens += tokens
            output.logits.register_hook(self._backward)
        elif hasattr(module, "get_base_model"):
            self._reference_forward(module, args, kwargs, output)
        else:
            self.now.other_policy_forwards += 1

    def _backward(self, gradient: torch.Tensor) -> None:
        self.now.backwards += 1

    def _reference_forward(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.now.reference_forwards += 1
        rows, tokens = read(kwargs)
        self.now.reference_rows += rows
        self.now.reference_tokens += tokens

    def _decode_forward(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self.generating:
            self.now.decode_forwards += 1
            self.now.decode_positions += kwargs["input_ids"].numel()

    def _generate(self, real: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.now.generate_calls += 1
            self.now.generate_rows += len(kwargs["input_ids"])
            self.generating = True
            try:
                return real(*args, **kwargs)
            finally:
                self.generating = False

        return counted

    def _make(self, real: Any) -> Any:
        def kept(*args: Any, **kwargs: Any) -> Step:
            self.made.append(real(*args, **kwargs))
            return self.made[-1]

        return kept


def read(inputs: dict[str, Any]) -> tuple[int, int]:
    """Responses and tokens of a forward. Joined pairs come with a mask for each token."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if mask.ndim == 2:
        return len(ids), int(mask.sum())
    return 2 * len(ids), ids.numel()


def measure(folder: Path, routes: dict[str, Any], *, adapter: bool = False, **options: Any) -> Meter:
    """Three steps of 2 micro-batches with 4 rows each."""
    meter = Meter()
    own: dict[str, Any] = {"ref_model": None if adapter else make_model(seed=9)}
    if adapter:
        own["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(
        folder,
        model=make_model(scale=0.1),
        rows=make_pairs(32),
        oracle=meter.oracle,
        trainer_options=own,
        routes=routes,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=MICRO,
        max_new_tokens=MAX_NEW,
        **options,
    )
    meter.watch(trainer)
    trainer.train()
    assert len(meter.steps) == len(meter.made) == STEPS
    return meter


def expected(step: Step, *, remembered: bool = False) -> Work:
    """What a step must cost, from its rows alone."""
    online = [example for example in step.examples if example.share.route.on_policy]
    referenced = online if remembered else step.examples

    def tokens(examples: Any) -> int:
        if not examples:
            return 0
        batch = collate(examples, PAD)
        if pays(make_model(), batch):
            return len(examples) * int(batch["joined_length"])
        return int(batch["attention_mask"].sum())

    micro = [batch["examples"] for batch in step.batches]
    scored = [[one for one in part if one in referenced] for part in micro]
    forwards = sum(any(not remembered or one in online for one in part) for part in micro)
    # A decode step is made for all rows until the last one ends; the first reads the (left padded) prompts.
    longest = max((len(each.ids) for one in online for each in one.responses), default=0)
    prompt = max((len(one.row["prompt_ids"]) for one in online), default=0)
    asked = [
        one
        for one in online
        if one.share.route.name == "dpr" and one.responses[0].text != one.responses[1].text
    ]
    return Work(
        train_forwards=MICRO,
        train_rows=2 * len(step.examples),
        train_tokens=sum(map(tokens, micro)),
        backwards=MICRO,
        other_policy_forwards=0,
        reference_forwards=forwards,
        reference_rows=2 * len(referenced),
        reference_tokens=sum(map(tokens, scored)),
        generate_calls=1 if online else 0,
        generate_rows=2 * len(online),
        decode_forwards=longest,
        decode_positions=2 * len(online) * (prompt + longest - 1) if online else 0,
        oracle_pairs=len(asked),
    )


ROUTES: dict[str, dict[str, Any]] = {
    "data": {"data": 1.0},
    "ddp": {"ddp": {"weight": 1.0, "coefficient": 0.2}},
    "dpp": {"dpp": {"weight": 1.0, "coefficient": 0.2}},
    "dpr": {"dpr": {"weight": 1.0, "coefficient": 0.3}},
    "mix": {
        "data": {"weight": 0.5},
        "dpp": {"weight": 0.25, "coefficient": 0.2},
        "dpr": {"weight": 0.25, "coefficient": 0.3},
    },
}


# Not ddp or dpp alone with an adapter: they need a reference other than the start.
RUNS = [*((name, False) for name in ROUTES), ("data", True), ("dpr", True), ("mix", True)]


@pytest.mark.parametrize(
    ("name", "adapter"), RUNS, ids=[f"{name}-{'lora' if adapter else 'full'}" for name, adapter in RUNS]
)
def test_work_of_each_route(tmp_path: Path, name: str, adapter: bool) -> None:
    """Every number of every step is what its rows say, with a frozen reference and with the disabled adapter as one."""
    meter = measure(tmp_path, ROUTES[name], adapter=adapter)
    assert meter.before == Work()
    for work, step in zip(meter.steps, meter.made, strict=True):
        assert work == expected(step)
    generated = sum(work.generate_calls for work in meter.steps)
    assert generated == (0 if name in ("data", "ddp") else STEPS)


def test_ddp_costs_what_data_costs(tmp_path: Path) -> None:
    """To the token, over whole runs on the same rows."""
    data = measure(tmp_path / "data", ROUTES["data"])
    ddp = measure(tmp_path / "ddp", ROUTES["ddp"])
    assert data.steps == ddp.steps


@pytest.mark.parametrize(
    "options", [{"temperature": 0.8}, {"kl_policy_ref": 0.1}, {"baseline": "none"}], ids=str
)
def test_options_of_sampled_rows_cost_no_pass(tmp_path: Path, options: dict[str, Any]) -> None:
    """log mu at another temperature, the KL penalty and the baseline use the forward passes that are there anyway."""
    meter = measure(tmp_path, ROUTES["dpr"], **options)
    for work, step in zip(meter.steps, meter.made, strict=True):
        assert work == expected(step)


@pytest.mark.parametrize("name", ["data", "mix"])
def test_precomputed_reference(tmp_path: Path, name: str) -> None:
    """Dataset rows pay their reference forward once, before training; sampled rows still pay theirs."""
    meter = measure(tmp_path, ROUTES[name], precompute_ref_log_probs=True)
    assert meter.before is not None
    assert meter.before.reference_rows == 2 * 32
    for work, step in zip(meter.steps, meter.made, strict=True):
        assert work == expected(step, remembered=True)
    if name == "data":
        assert sum(work.reference_forwards for work in meter.steps) == 0
    else:
        assert (
            0
            < sum(work.reference_rows for work in meter.steps)
            < sum(work.train_rows for work in meter.steps)
        )


def test_generation_batch_size_splits_the_call(tmp_path: Path) -> None:
    """16 sampled rows in calls of at most 6."""
    meter = measure(tmp_path, ROUTES["dpr"], generation_batch_size=6)
    assert [work.generate_calls for work in meter.steps] == [3] * STEPS
    assert [work.generate_rows for work in meter.steps] == [16] * STEPS
