"""Supervised fine-tuning, the stage before alignment, on TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sail.data.encode import encode_prompt, encode_response, eos_ids
from sail.errors import DataError, MissingExtraError
from sail.training.merging import base_of, in_few_bits, merged_with_base
from sail.training.progress import ReadableProgress
from sail.types import Prompt


def fine_tune(
    model: Any,
    tokenizer: Any,
    rows: list[tuple[Prompt, str]],
    eval_rows: list[tuple[Prompt, str]] | None,
    arguments: dict[str, Any],
    *,
    peft_config: Any = None,
) -> Path:
    """Train on the completions and save model and tokenizer in output_dir; returns it.

    Rows are tokenised by the same code as in alignment, so that both stages see the same ids: the prompt alone, then the
    response with its end-of-turn token. `arguments` are trl.SFTConfig's. With an adapter the merged model is saved.
    """
    try:
        from datasets import Dataset
        from transformers import PrinterCallback, ProgressCallback
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise MissingExtraError(
            'sail sft needs TRL and datasets. Install them: pip install "sail-align[sft]"'
        ) from error
    arguments = {"report_to": [], "save_strategy": "no", "logging_steps": 10, **arguments}
    limit, ends = arguments.get("max_length"), eos_ids(tokenizer, getattr(model, "generation_config", None))
    config = SFTConfig(**{**device_defaults(arguments, SFTConfig), **arguments})
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(_tokenised(tokenizer, rows, limit, ends)),
        eval_dataset=None
        if eval_rows is None
        else Dataset.from_list(_tokenised(tokenizer, eval_rows, limit, ends)),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    if not config.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ReadableProgress("sft"))
    if peft_config is not None:
        trained = sum(weights.numel() for weights in trainer.model.parameters() if weights.requires_grad)
        every = sum(weights.numel() for weights in trainer.model.parameters())
        print(
            f"LoRA: {trained:,} of {every:,} parameters are trained; leave peft out of the run file to train all."
        )
    trainer.train()
    folder = Path(config.output_dir)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if in_few_bits(trained):
        trained.save_pretrained(folder / "adapter")
        full, stored = merged_with_base(folder / "adapter", base_of(trained))
        trained = full.to(stored)
    elif peft_config is not None:
        trained = trained.merge_and_unload()
    trained.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def device_defaults(arguments: dict[str, Any], config_class: Any) -> dict[str, Any]:
    """TRL asks for bf16 and activation checkpointing by default; neither helps without a GPU that supports bf16."""
    import torch

    defaults: dict[str, Any] = {"dataloader_pin_memory": torch.cuda.is_available()}
    if "bf16" not in arguments and "fp16" not in arguments:
        defaults["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    # Older releases of transformers know it under its old name only.
    known = "activation_checkpointing" in config_class.__dataclass_fields__
    if not {"activation_checkpointing", "gradient_checkpointing"} & arguments.keys():
        defaults["activation_checkpointing" if known else "gradient_checkpointing"] = False
    return defaults


def _tokenised(
    tokenizer: Any, rows: list[tuple[Prompt, str]], limit: int | None, ends: tuple[int, ...]
) -> list[dict[str, list[int]]]:
    """TRL's processed form: input_ids and a completion_mask that is 1 on the response."""
    examples = []
    for prompt, completion in rows:
        prompt_ids = encode_prompt(tokenizer, prompt)
        response_ids = encode_response(tokenizer, prompt, completion, ends)
        ids = (prompt_ids + response_ids)[:limit]
        if len(ids) <= len(prompt_ids):
            continue
        examples.append(
            {"input_ids": ids, "completion_mask": [0] * len(prompt_ids) + [1] * (len(ids) - len(prompt_ids))}
        )
    if examples and len(examples) < len(rows):
        print(
            f"{len(rows) - len(examples)} of {len(rows)} rows left out: their prompts alone fill sft.max_length {limit}."
        )
    if not examples:
        raise DataError(f"No row has room for a completion within sft.max_length {limit}. Raise it.")
    return examples
