"""A language model world that trains in milliseconds: tokenizer, model, pairs, reward, config, trainer.

Words are w0, w1, ...; ids: 0 <pad>, 1 <eos>, 2 <unk>, then the words. Everything is made from a seed, nothing from a hub.
"""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sail.trainer import SAILConfig, SAILTrainer

PAD, EOS, UNK = 0, 1, 2
WORDS = 29
VOCABULARY = 3 + WORDS


def make_tokenizer(
    words: Sequence[str] | None = None, *, pad_is_eos: bool = False
) -> PreTrainedTokenizerFast:
    """Splits at spaces, one id per word. `pad_is_eos`: the tokenizer comes without a pad token and uses its EOS."""
    words = [f"w{number}" for number in range(WORDS)] if words is None else list(words)
    ids = {word: place for place, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"eos_token": "<eos>", "unk_token": "<unk>"}
    if not pad_is_eos:
        names["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_model(
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    scale: float = 0.02,
    **changes: Any,
) -> LlamaForCausalLM:
    """A Llama of about 20,000 parameters. `scale` is the standard deviation of its initial weights: 0.02 speaks almost
    uniformly, 0.3 has clear opinions. `changes` go to LlamaConfig. Every call with the same arguments gives the same weights."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
        "tie_word_embeddings": True,
        **changes,
    }
    config = LlamaConfig(vocab_size=vocabulary, initializer_range=scale, **shape)
    # A generator of its own would not reach the initialisation of transformers: save and restore the global one.
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).to(dtype)
    torch.set_rng_state(state)
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    return model


def make_prompts(count: int = 64, *, seed: int = 1) -> list[str]:
    """Distinct prompts of 2 to 6 words."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[_words(chance, 2, 6)] = None
    return list(found)


def make_pairs(count: int = 64, *, seed: int = 0) -> list[dict[str, str]]:
    """Preference rows (prompt, chosen, rejected) with distinct prompts; the responses have 1 to 8 random words."""
    chance = random.Random(seed)
    rows = []
    for prompt in make_prompts(count, seed=seed + 1):
        chosen = _words(chance, 1, 8)
        rejected = _words(chance, 1, 8)
        while rejected == chosen:
            rejected = _words(chance, 1, 8)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def _words(chance: random.Random, least: int, most: int) -> str:
    return " ".join(f"w{chance.randrange(WORDS)}" for _ in range(chance.randint(least, most)))


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Likes the word w3 and brevity."""
    return [response.split().count("w3") - 0.1 * len(response.split()) for response in responses]


def make_config(folder: Path | str, **options: Any) -> SAILConfig:
    """Fast, quiet and on the CPU; 8 steps of 4 x 2 rows unless told otherwise."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_new_tokens": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    if "preset" not in options and "routes" not in options:
        defaults["preset"] = "sail-dpr"
    return SAILConfig(**{**defaults, **options})


def make_trainer(
    folder: Path | str,
    *,
    model: Any = None,
    rows: Any = None,
    tokenizer: Any = None,
    oracle: Any = reward,
    trainer_options: dict[str, Any] | None = None,
    **options: Any,
) -> SAILTrainer:
    """A SAILTrainer on the tiny world; `options` are SAILConfig's, `trainer_options` SAILTrainer's own."""
    return SAILTrainer(
        make_model() if model is None else model,
        args=make_config(folder, **options),
        train_dataset=make_pairs() if rows is None else rows,
        processing_class=make_tokenizer() if tokenizer is None else tokenizer,
        oracle=oracle,
        **(trainer_options or {}),
    )


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: copy.deepcopy(value.detach()) for name, value in model.state_dict().items()}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference between two sets of weights with the same names."""
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def leave_together() -> None:
    """The end of a process of several. Trainers that hold the process group are collected before it is destroyed: gloo's threads
    would else release tensors while the interpreter ends, which now and then aborts the process on a busy machine."""
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
