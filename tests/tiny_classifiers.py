"""Tiny reward models in folders, as save_pretrained leaves them: a decoder (Llama) and an encoder (BERT)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{number}" for number in range(tiny.WORDS)]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
MARKS = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]


def save_llama(
    folder: Path, tokenizer: Any = None, *, labels: int = 1, seed: int = 0, **changes: Any
) -> Path:
    """A LlamaForSequenceClassification with clear opinions, and its tokenizer."""
    tokenizer = tiny.make_tokenizer() if tokenizer is None else tokenizer
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": tiny.PAD,
        "eos_token_id": tiny.EOS,
        "bos_token_id": None,
        **changes,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, num_labels=labels, **shape)
    return _saved(folder, lambda: LlamaForSequenceClassification(config), tokenizer, seed)


def save_bert(folder: Path, *, seed: int = 0) -> Path:
    """A BertForSequenceClassification, whose tokenizer writes [CLS] a [SEP] b [SEP] with segment ids."""
    tokenizer = encoder_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        num_labels=1,
        initializer_range=0.3,
    )
    return _saved(folder, lambda: BertForSequenceClassification(config), tokenizer, seed)


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word; two texts are joined by separators."""
    ids = {word: place for place, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def chat_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """With a chat template, whose marks are tokens."""
    tokenizer = tiny.make_tokenizer([*words, *MARKS])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _saved(folder: Path, make: Any, tokenizer: Any, seed: int) -> Path:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = make()
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
