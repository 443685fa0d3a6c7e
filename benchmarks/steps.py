"""Seconds per optimiser step: each route relative to data, and data relative to trl.DPOTrainer. `make bench`.

Median ratios over alternated steps (turns.py) with a 95% bootstrap interval. Both trainers get the same model, rows, tokens
(checked), batch, optimiser, learning rate and logging; neither checkpoints activations nor precomputes the reference; float32
on the CPU. Every response has as many tokens as every other, so routes differ in what they do, not in how long their texts are.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch: one thread, and threads that sleep while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer
from turns import Turn, alternate

from sail.evaluation.stats import ratio_interval
from sail.generation import Generator, Sampled, SeedKey
from sail.trainer import SAILConfig, SAILTrainer

TRL, DATA = "trl", "data"
ROUTES: dict[str, dict[str, Any]] = {
    DATA: {"data": {"weight": 1.0}},
    "ddp": {"data": {"weight": 0.7}, "ddp": {"weight": 0.3, "coefficient": 0.2}},
    "dpp": {"data": {"weight": 0.7}, "dpp": {"weight": 0.3, "coefficient": 0.2}},
    "dpr": {"data": {"weight": 0.7}, "dpr": {"weight": 0.3, "coefficient": 0.3}},
    "dpr-only": {"dpr": {"weight": 1.0, "coefficient": 0.3}},
}
"""The paper's coefficients; all on-policy and self-labelled routes at one weight, so that their costs compare."""

SHAPES = {
    "0.1M": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 2},
    "1M": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "num_attention_heads": 4},
    "10M": {"hidden_size": 320, "num_hidden_layers": 8, "intermediate_size": 864, "num_attention_heads": 5},
}
WORDS = 1000
PROMPT_WORDS = (6, 14)
RESPONSE_TOKENS = 48
TUNINGS = ("full", "lora")


@dataclass(frozen=True)
class Settings:
    """What a run of this file was asked for."""

    size: str = "1M"
    steps: int = 40
    warm_up: int = 4
    rows: int = 8
    lora_r: int = 16
    routes: tuple[str, ...] = tuple(ROUTES)
    tunings: tuple[str, ...] = TUNINGS


# ---- the same world for both trainers


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word."""
    ids = {word: place for place, word in enumerate(["<pad>", "<eos>", *(f"w{n}" for n in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def make_model(size: str) -> LlamaForCausalLM:
    """A Llama with random weights: it hardly ever says EOS, so that sampled responses have their full length."""
    config = LlamaConfig(
        vocab_size=WORDS + 2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        **SHAPES[size],
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def make_rows(count: int) -> list[dict[str, str]]:
    """Pairs of equally long responses. TRL joins prompt and response as strings: the space belongs to the response."""
    chance = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"w{chance.randrange(WORDS)}" for _ in range(words))

    responses = ("chosen", "rejected")
    return [
        {
            "prompt": text(chance.randint(*PROMPT_WORDS)),
            **{name: " " + text(RESPONSE_TOKENS - 1) for name in responses},
        }
        for _ in range(count)
    ]


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """An oracle that costs nothing: its price is the user's, not the step's."""
    return [float(response.count("w1")) for response in responses]


# ---- counting


class Count(Generator):
    """Tokens per step of one trainer: policy (forward and backward), reference (forward), generated. Padding included in
    the first two, because it is computed too."""

    def __init__(self, generator: Generator | None = None) -> None:
        self.generator = generator
        self.generating = False
        self.tokens = {"policy": 0, "reference": 0, "generated": 0}

    def sample(self, prompts: Sequence[Sequence[int]], keys: Sequence[SeedKey]) -> list[Sampled]:
        """The generator's own, counted."""
        assert self.generator is not None
        self.generating = True
        sampled = self.generator.sample(prompts, keys)
        self.generating = False
        self.tokens["generated"] += sum(len(one.ids) for one in sampled)
        return sampled

    def watch(self, *watched: Any) -> None:
        """Count what these models are given from now on."""
        for model in watched:
            model.register_forward_pre_hook(self._seen, with_kwargs=True)

    def _seen(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not self.generating:
            self.tokens["policy" if torch.is_grad_enabled() else "reference"] += kwargs["input_ids"].numel()


# ---- the trainers


def arguments(settings: Settings, folder: Path) -> dict[str, Any]:
    """What both trainers are given."""
    return {
        "output_dir": str(folder),
        # One more than there are turns: the last step must not end the training.
        "max_steps": settings.warm_up + settings.steps + 1,
        "per_device_train_batch_size": settings.rows,
        "beta": 0.1,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "gradient_checkpointing": False,
        "bf16": False,
        "precompute_ref_log_probs": False,
        "max_length": 128,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def adapter(settings: Settings, tuning: str) -> LoraConfig | None:
    """The same adapter for both, or None."""
    if tuning == "full":
        return None
    return LoraConfig(r=settings.lora_r, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def trl_trainer(
    settings: Settings, tuning: str, rows: list[dict[str, str]], folder: Path
) -> tuple[Any, Count]:
    """TRL's, as its documentation says."""
    peft, model = adapter(settings, tuning), make_model(settings.size)
    trainer = DPOTrainer(
        model,
        ref_model=copy.deepcopy(model) if peft is None else None,
        args=DPOConfig(**arguments(settings, folder)),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
        peft_config=peft,
    )
    count = Count()
    count.watch(*([trainer.model] if peft else [trainer.model, trainer.ref_model]))
    return trainer, count


def sail_trainer(
    settings: Settings, tuning: str, route: str, rows: list[dict[str, str]], folder: Path
) -> tuple[Any, Count]:
    """Ours, with one of the routes."""
    options = SAILConfig(
        **arguments(settings, folder),
        routes=ROUTES[route],
        max_prompt_length=32,
        max_new_tokens=RESPONSE_TOKENS,
    )
    trainer = SAILTrainer(
        make_model(settings.size),
        args=options,
        train_dataset=rows,
        processing_class=make_tokenizer(),
        oracle=reward if "dpr" in ROUTES[route] else None,
        peft_config=adapter(settings, tuning),
    )
    count = Count(trainer.generator)
    trainer.maker.generator = count
    frozen = trainer.reference.frozen
    count.watch(*([trainer.model] if frozen is None else [trainer.model, frozen]))
    return trainer, count


# ---- measuring


def measure(settings: Settings, tuning: str, folder: Path) -> dict[str, Any]:
    """All trainers of one tuning, their steps alternated: seconds, tokens and ratios."""
    rows = make_rows(settings.rows * (settings.warm_up + settings.steps + 2))
    made = {TRL: trl_trainer(settings, tuning, rows, folder / tuning / TRL)}
    for route in settings.routes:
        made[route] = sail_trainer(settings, tuning, route, rows, folder / tuning / route)
    turns = {}
    for name, (trainer, _) in made.items():
        trainer.remove_callback(PrinterCallback)
        turns[name] = Turn(trainer.train)
        trainer.add_callback(turns[name])
    seconds = alternate(turns, warm_up=settings.warm_up, steps=settings.steps)
    steps = settings.warm_up + settings.steps
    tokens = {
        name: {kind: round(total / steps, 1) for kind, total in count.tokens.items()}
        for name, (_, count) in made.items()
    }
    if tokens[TRL] != tokens[DATA]:
        raise RuntimeError(
            f"Not the same work: TRL computed {tokens[TRL]}, data {tokens[DATA]} tokens a step."
        )
    return {
        "trainable_parameters": sum(p.numel() for p in made[DATA][0].model.parameters() if p.requires_grad),
        "median_seconds": {name: round(statistics.median(times), 5) for name, times in seconds.items()},
        "tokens_per_step": tokens,
        "ratios": ratios(seconds),
    }


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """data over TRL, and every other route over data: median of the rounds' ratios, 95% interval, n."""
    compared = {f"{DATA} / {TRL}": (DATA, TRL)}
    compared |= {f"{name} / {DATA}": (name, DATA) for name in seconds if name not in (DATA, TRL)}
    table = {}
    for label, (above, below) in compared.items():
        found = ratio_interval(seconds[above], seconds[below])
        table[label] = {"median": found.mean, "low": found.low, "high": found.high, "n": found.n}
    return table


def benchmark(settings: Settings) -> dict[str, Any]:
    """The whole result, as it is written to steps.json."""
    with tempfile.TemporaryDirectory() as folder:
        results = {tuning: measure(settings, tuning, Path(folder)) for tuning in settings.tunings}
    names = ("torch", "transformers", "trl", "peft", "accelerate", "sail-align")
    return {
        "date": date.today().isoformat(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in names}},
        "settings": {
            **asdict(settings),
            "parameters": sum(p.numel() for p in make_model(settings.size).parameters()),
            "prompt_words": PROMPT_WORDS,
            "response_tokens": RESPONSE_TOKENS,
            "mixtures": {name: ROUTES[name] for name in settings.routes},
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "dtype": "float32",
        },
        "results": results,
    }


# ---- showing


def show(result: dict[str, Any]) -> None:
    """A table per tuning."""
    asked = result["settings"]
    print(
        f"\n{asked['parameters']:,} parameters, {asked['rows']} rows a step, responses of {RESPONSE_TOKENS} tokens, "
        f"{asked['threads']} thread(s); {asked['steps']} alternated steps after {asked['warm_up']}"
    )
    for tuning, part in result["results"].items():
        print(f"\n{tuning}, {part['trainable_parameters']:,} trainable")
        print(
            f"  {'':<10} {'seconds':>8}  {'median ratio of steps':<30} tokens: policy, reference, generated"
        )
        for name, seconds in part["median_seconds"].items():
            below = TRL if name == DATA else DATA
            ratio = part["ratios"].get(f"{name} / {below}")
            tokens = ", ".join(f"{value:.0f}" for value in part["tokens_per_step"][name].values())
            print(f"  {name:<10} {seconds:>8.4f}  {_ratio_text(ratio, below):<30} {tokens}")
    print()


def _ratio_text(ratio: dict[str, Any] | None, below: str) -> str:
    if ratio is None:
        return ""
    interval = "" if ratio["low"] is None else f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return f"{ratio['median']:.2f}{interval} of {below}"


def parse(argv: Sequence[str] | None = None) -> tuple[Settings, Path]:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=Settings.steps, help="timed steps (default: %(default)s)"
    )
    parser.add_argument("--warm-up", type=int, default=Settings.warm_up, help="default: %(default)s")
    parser.add_argument("--size", choices=tuple(SHAPES), default=Settings.size, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=Settings.rows, help="pairs a step (default: %(default)s)")
    parser.add_argument("--lora-r", type=int, default=Settings.lora_r, help="default: %(default)s")
    parser.add_argument(
        "--routes", nargs="+", choices=tuple(ROUTES), default=list(ROUTES), help="default: all"
    )
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS, default=list(TUNINGS), help="default: both")
    results = Path(__file__).parent / "results" / "steps.json"
    parser.add_argument(
        "--out", type=Path, default=results, help="default: results/steps.json beside this file"
    )
    given = vars(parser.parse_args(argv))
    out = given.pop("out")
    # data is what everything is compared with.
    given["routes"] = tuple(name for name in ROUTES if name == DATA or name in given["routes"])
    return Settings(**{**given, "tunings": tuple(given["tunings"])}), out


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    settings, out = parse(argv)
    warnings.filterwarnings("ignore")
    disable_progress_bars()
    result = benchmark(settings)
    show(result)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {out}.")


if __name__ == "__main__":
    main()
