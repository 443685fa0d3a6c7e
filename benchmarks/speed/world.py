"""What all contestants are given: model shapes, a tokenizer, equally long pairs, an oracle that costs nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Shape:
    """A Llama shape, and the texts that are measured with it. Lengths in tokens; every response has `response` of them."""

    width: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    words: int
    prompt: tuple[int, int] = (6, 14)
    response: int = 48
    rows: int = 8

    @property
    def longest(self) -> int:
        """Of prompt and response, with room to spare."""
        return 2 * (self.prompt[1] + self.response)


LONG: dict[str, Any] = {"words": 151_934, "prompt": (64, 128), "response": 256}
SHAPES = {
    "0.1M": Shape(32, 2, 96, 2, 2, 1000),
    "1M": Shape(128, 4, 384, 4, 4, 1000),
    "10M": Shape(320, 8, 864, 5, 5, 1000),
    "50M": Shape(640, 10, 1760, 10, 10, 1000),
    "0.5B": Shape(896, 24, 4864, 14, 2, **LONG),
    "1.5B": Shape(1536, 28, 8960, 12, 2, **LONG),
}
"""The first four for a CPU in float32, the last two for a GPU in bfloat16, with a vocabulary of their size class."""


def make_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """One id per word."""
    ids = {
        word: place for place, word in enumerate(["<pad>", "<eos>", *(f"w{n}" for n in range(shape.words))])
    }
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def make_model(shape: Shape, device: str = "cpu") -> LlamaForCausalLM:
    """A Llama with random weights: it hardly ever says EOS, so that sampled responses have their full length. float32 on the
    CPU, bfloat16 on a GPU."""
    config = LlamaConfig(
        vocab_size=shape.words + 2,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
        max_position_embeddings=shape.longest,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return model.to(torch.bfloat16) if device != "cpu" else model


def adapter(rank: int, tuning: str) -> LoraConfig | None:
    """The same adapter for all, or None."""
    if tuning == "full":
        return None
    return LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def make_rows(shape: Shape, count: int) -> list[dict[str, str]]:
    """Pairs of equally long responses. TRL joins prompt and response as strings: the space belongs to the response."""
    chance = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"w{chance.randrange(shape.words)}" for _ in range(words))

    return [
        {
            "prompt": text(chance.randint(*shape.prompt)),
            **{name: " " + text(shape.response - 1) for name in ("chosen", "rejected")},
        }
        for _ in range(count)
    ]


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """An oracle that costs nothing: its price is the user's, not the step's."""
    return [float(response.count("w1")) for response in responses]


def train_flops(shape: Shape, trained: float, read: float, length: float, *, lora: bool) -> float:
    """Floating-point operations of a step's training part, of the model alone: 2 per weight and token forward, 4 backward (2
    with LoRA, whose frozen weights get no gradient), and 2 x 2 x width per attended pair of tokens (half of them, causal).

    trained, read: tokens with forward and backward, and with a reference forward; `length` of them a text. The head counts for
    the `shape.response` tokens of each text that the loss needs; whoever makes more logits gets nothing for them, as for
    recomputation.
    """
    attention = 2 * shape.width * shape.width * (1 + shape.kv_heads / shape.heads)
    head = (shape.words + 2) * shape.width * min(shape.response / length, 1.0)
    weights = shape.layers * (attention + 3 * shape.width * shape.inner) + head
    per_token = 2 * weights + 2 * shape.layers * shape.width * length
    return per_token * ((2 if lora else 3) * trained + read)


PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16, from the makers' data sheets; utilisation is null for other devices."""
