"""Which back-end samples a run's responses."""

from __future__ import annotations

from typing import Any

from sail.data.encode import eos_ids
from sail.generation import Generator, SamplingSettings, TransformersGenerator
from sail.generation.scoring import unwrapped
from sail.training.arguments import SAILConfig


def make_generator(trainer: Any, tokenizer: Any) -> Generator:
    """transformers in process, or vLLM with `use_vllm`. What is sampled runs in the precision in which the policy is trained."""
    args: SAILConfig = trainer.args
    settings = SamplingSettings(
        args.max_new_tokens,
        args.temperature,
        eos_ids(tokenizer, getattr(trainer.model, "generation_config", None)),
        tuple(args.stop_strings or ()),
        tokenizer.pad_token_id,
        args.generation_batch_size,
    )
    if not args.use_vllm:
        return TransformersGenerator(
            lambda: unwrapped(trainer.model), tokenizer, settings, trainer.accelerator.autocast
        )
    from sail.generation.vllm import VLLMGenerator, make_engine

    return VLLMGenerator(
        make_engine(args, trainer.model, args.output_dir),
        lambda: trainer.model,
        tokenizer,
        settings,
        precision=trainer.accelerator.autocast,
        score_batch=2 * args.per_device_train_batch_size,
        chunk=args.logprob_chunk,
        step=lambda: trainer.state.global_step,
    )
