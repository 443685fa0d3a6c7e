"""The playground's language model: a word-level tokenizer and a Llama of a million parameters, untrained."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sail.playground.world import vocabulary

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
CONTEXT = 128
"""Tokens of prompt and response together: the longest prompt has 20, the longest mediocre answer 48."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word of the world, after <pad>, <eos> and <unk>; no token marks the beginning.

    Decoding gives back exactly the text that was encoded. A mark is a token of its own even where no space
    stands before it, so that a prompt and a response glued together split at the same place.
    """
    ids = {token: i for i, token in enumerate([PAD, EOS, UNK, *vocabulary()])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model_folder(folder: Path, seed: int) -> None:
    """Write an untrained model of 1.0 million parameters and its tokenizer to `folder`.

    `AutoTokenizer` and `AutoModelForCausalLM` load it. The weights depend on `seed` only; the global random
    state is left as it was.
    """
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # More than the usual 0.02, which is made for widths in the thousands: here it learns several times faster.
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
