"""From a run config to objects, and the verbs of the command line. The only bridge between config and the parts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sail.build_oracle import (
    TellStep,
    begin_ledger,
    make_eval_oracle,
    make_ledger,
    make_oracle,
    oracle_results,
)
from sail.config import RunConfig, chosen_yaml, resolved_yaml
from sail.data.encode import (
    EncodedDataset,
    concatenate,
    encode_prompt,
    encode_rows,
    eos_ids,
    prepare_tokenizer,
)
from sail.data.remarks import about_rows, about_shared, left_out
from sail.data.sources import load_rows, load_sft_rows
from sail.data_config import DataSource, title_of
from sail.errors import ConfigError, MissingExtraError, OracleError, SailError
from sail.evaluation.fingerprint import weights_fingerprint
from sail.fitting import check_fit
from sail.generation import SamplingSettings, TransformersGenerator
from sail.oracles.ledger import Ledger
from sail.quantization import loading_arguments
from sail.results import (
    RESULTS,
    audit_run,
    final_results,
    print_results,
    save_model,
    seconds_per_step,
    write_json,
)
from sail.run_folder import RESOLVED, check_folder, clear, holds_a_run
from sail.trainer import SAILConfig, SAILTrainer
from sail.training.models import load
from sail.training.progress import StopOnSignal, train_or_stop
from sail.training.survival import where_to_go_on
from sail.training.whole import settle

# One bar for the run is enough: the bars of loading and writing weights would interrupt it.
transformers_logging.disable_progress_bar()


# ---- parts


def make_tokenizer(name: str, **arguments: Any) -> Any:
    """The tokenizer of a folder or a name, with a pad token."""
    tokenizer = _load(AutoTokenizer, name, "tokenizer", **arguments)
    prepare_tokenizer(tokenizer)
    return tokenizer


def make_model(name: str, **arguments: Any) -> Any:
    """A causal language model from a folder or a name, in its own dtype unless `dtype` is given; safetensors only, and no
    remote code unless `trust_remote_code` says so."""
    return _load(AutoModelForCausalLM, name, "model", **arguments)


def _hint(folder: Path) -> str:
    inside = folder / "model"
    if inside.is_dir():
        return f"its model is in {inside}"
    if (folder / "adapter_config.json").exists():
        return "it holds a LoRA adapter; take the model/ beside it, which has it merged, or make one with sail merge"
    return "save_pretrained writes one with config.json in it"


def require_model(name: str, what: str = "model") -> None:
    """ConfigError, with the way out, for a folder that is no model, and for a path where there is none."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").exists():
        raise ConfigError(f"{name} is not a model folder: {_hint(folder)}.")
    beside = [] if folder.is_dir() else _beside(folder)
    if not folder.is_dir() and (beside or name.startswith((".", "/", "~")) or name.count("/") > 1):
        others = f" Beside it: {', '.join(beside)}." if beside else ""
        raise ConfigError(
            f"There is no folder {name}, so no {what} can be loaded.{others} Check model, or make it first: with sail sft, or "
            "with sail play for recipes/playground.yaml."
        )


def _beside(folder: Path) -> list[str]:
    """The models and runs in the folder where this one should be, eight at most. None for a hub's ORGANISATION/NAME, unless
    there is a folder of that name here with models in it."""
    if len(folder.parts) == 1 or not folder.parent.is_dir():
        return []
    known = (
        one for one in folder.parent.iterdir() if (one / "config.json").exists() or (one / RESOLVED).exists()
    )
    return sorted(one.name for one in known)[:8]


def _load(kind: Any, name: str, what: str, **arguments: Any) -> Any:
    require_model(name, what)
    return load(kind, name, what, **arguments)


def make_datasets(
    config: RunConfig, tokenizer: Any, ends: tuple[int, ...]
) -> tuple[EncodedDataset, EncodedDataset | None, list[str]]:
    """Training rows (pairs, then prompt-only rows), held-out rows, and remarks about both. `ends`: ids that end a response."""
    options, remarks = config.alignment, []

    def encoded(source: str | DataSource, *, prompts_only: bool = False) -> EncodedDataset:
        rows = load_rows(source, bad_rows=config.data.bad_rows)
        if prompts_only:
            rows = replace(
                rows, rows=[replace(row, chosen=None, rejected=None) for row in rows.rows], identical=0
            )
        made = encode_rows(
            rows,
            tokenizer,
            eos=ends,
            max_length=options.max_length,
            max_prompt_length=options.max_prompt_length,
            bad_rows=config.data.bad_rows,
        )
        remarks.append(about_rows(title_of(source), made, rows.counts))
        return made

    parts = [encoded(config.data.train)] if config.data.train else []
    parts += [encoded(config.data.prompts, prompts_only=True)] if config.data.prompts else []
    train = parts[0] if len(parts) == 1 else concatenate(parts[0], parts[1])
    held_out = encoded(config.data.eval) if config.data.eval else None
    return train, held_out, [*remarks, *about_shared(train.rows, [] if held_out is None else held_out.rows)]


def make_arguments(config: RunConfig) -> SAILConfig:
    """The trainer's arguments; ConfigError on a key that nobody knows, or a value of the wrong kind."""
    given = _with_defaults(config)
    known = {field.name: field.default for field in fields(SAILConfig)}
    for key, value in given.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"train.{key} is neither sail's nor one of transformers.TrainingArguments.{hint}"
            )
        if (
            isinstance(value, str)
            and isinstance(known[key], int | float)
            and not isinstance(known[key], bool)
        ):
            raise ConfigError(f"train.{key} must be a number; it is {value!r}.")
    try:
        return SAILConfig(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"transformers.TrainingArguments refused a value of train: {error}") from error


def make_trainer(config: RunConfig, ledger: Ledger | None = None) -> tuple[SAILTrainer, list[str]]:
    """The trainer of the run, with remarks about its data. `ledger`: where its oracle's paid calls are kept, if anywhere."""
    arguments = make_arguments(config)
    trust = {"trust_remote_code": config.trust_remote_code}
    tokenizer = make_tokenizer(config.tokenizer or config.model, **trust)
    model = make_model(config.model, **trust, **loading_arguments(config.quantization))
    stored = model.dtype
    if config.peft is None and stored in (torch.bfloat16, torch.float16):
        # At usual learning rates most updates are smaller than a half-precision weight's last digit, and would be lost.
        model = model.float()
    train, held_out, remarks = make_datasets(config, tokenizer, eos_ids(tokenizer, model.generation_config))
    remarks += check_fit(config, train, held_out)
    trainer = SAILTrainer(
        model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        oracle=make_oracle(config, ledger),
        eval_oracle=make_eval_oracle(config, ledger),
        ref_model=None if config.ref_model is None else make_model(config.ref_model, **trust),
        peft_config=make_peft(config),
        callbacks=[StopOnSignal(), *([TellStep(ledger)] if ledger is not None else [])],
    )
    if model.dtype != stored:
        remarks.append(
            f"The model is stored in {stored}; all its weights are trained, in float32, and saved so."
        )
    return trainer, remarks


def _with_defaults(config: RunConfig) -> dict[str, Any]:
    """The command line's own defaults where the user wrote nothing: no external logger, no pinned memory without a GPU."""
    return {"report_to": [], "dataloader_pin_memory": torch.cuda.is_available(), **config.trainer_kwargs}


def make_peft(config: RunConfig) -> Any:
    """The LoRA configuration, or None."""
    if config.peft is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtraError('peft: needs PEFT. Install it: pip install "sail-align[lora]"') from error
    try:
        return LoraConfig(task_type="CAUSAL_LM", **config.peft.lora_kwargs)
    except TypeError as error:
        raise ConfigError(f"A key of peft is none of peft.LoraConfig: {error}") from error


# ---- sail sft


def run_sft(config: RunConfig) -> Path:
    """`sail sft`: returns the folder of the fine-tuned model."""
    from sail.sft import fine_tune

    if config.sft is None:
        raise ConfigError("The run has no sft section. Add one: sft: {train: sft.jsonl, output_dir: sft}.")
    source = config.sft.train or config.data.train
    if source is None:
        raise ConfigError(
            "sail sft has no data: set sft.train (prompt and completion) or data.train (its chosen answers)."
        )
    start = config.sft.model or config.model
    trust = {"trust_remote_code": config.trust_remote_code}
    tokenizer = make_tokenizer(config.tokenizer or start, **trust)
    rows = load_sft_rows(source, bad_rows=config.data.bad_rows)
    held_out = load_sft_rows(config.sft.eval, bad_rows=config.data.bad_rows).rows if config.sft.eval else None
    print(
        f"{title_of(source)}: {len(rows.rows)} rows{left_out(rows.counts)}"
        + (f", {len(rows.skipped)} skipped" if rows.skipped else "")
    )
    folder = fine_tune(
        make_model(start, **trust, **loading_arguments(config.quantization)),
        tokenizer,
        rows.rows,
        held_out,
        config.sft.trainer_kwargs,
        peft_config=make_peft(config),
    )
    print(f"The model is in {folder}.")
    return folder


# ---- sail train


def run_training(
    config: RunConfig, *, resume: bool, overwrite: bool, config_path: str, show_config: bool = True
) -> Path:
    """`sail train`: returns the run folder, with the model, metrics, pairs, results and report in it."""
    folder = Path(config.train.output_dir)
    check_folder(folder, config, resume=resume, overwrite=overwrite)
    make_peft(config)  # PEFT that is not installed is told before data and weights are read
    if show_config:
        _say(chosen_yaml(config))
    ledger = make_ledger(config)
    trainer, remarks = make_trainer(config, ledger)
    _say("\n".join(remarks))
    # Not before: a run whose model or data turn out to be unusable must not cost the old one.
    if trainer.is_world_process_zero():
        if overwrite and holds_a_run(folder):
            clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESOLVED).write_text(resolved_yaml(config), encoding="utf-8")
        if ledger is not None:
            begin_ledger(ledger, overwrite=overwrite)
    # Nobody opens a file that the main process is about to remove.
    trainer.accelerator.wait_for_everyone()
    start_model = weights_fingerprint(trainer.model)  # a checkpoint is only loaded by train
    try:
        stopped = train_or_stop(trainer, resume)
    except OracleError as error:
        _say("")  # the progress bar's line ends
        if "--resume" in str(error):
            raise
        raise OracleError(f"{error} {where_to_go_on(folder)}") from error
    if stopped:
        _say(
            f"\nStopped at step {trainer.state.global_step}. Continue with:\n  sail train {config_path} --resume"
        )
        raise KeyboardInterrupt("said already")
    totals = trainer.tracker.totals()
    settle(trainer)
    if trainer.is_world_process_zero():
        save_model(trainer, folder)
        results = final_results(trainer, totals)
        results["seconds_per_step"] = seconds_per_step(folder)
        results["fingerprints"]["start_model"] = start_model
        audit_run(trainer, folder, results)
        results["oracle"] = oracle_results(trainer.oracle, ledger)
        write_json(folder / RESULTS, results)
        print_results(results)
        _write_report(folder)
    _end_together(trainer)
    return folder


def _end_together(trainer: Any) -> None:
    """The others wait: a launcher takes the first process that ends for the end of the run. And whatever holds the process group
    is let go before it is destroyed: gloo's threads would else release tensors while the interpreter ends, and abort it."""
    trainer.accelerator.wait_for_everyone()
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


def _say(text: str) -> None:
    """Print, once however many processes a launcher has started."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def _write_report(folder: Path) -> None:
    from sail.report.page import write_report

    try:
        path = write_report([folder], folder / "report.html", title=f"sail run {folder.name}")
        print(f"The model is in {folder / 'model'}; the report is {path}.")
    except MissingExtraError as error:
        print(f"The model is in {folder / 'model'}. No report: {error}")


# ---- sail sample


def sample(
    model: str,
    prompts: Sequence[str],
    *,
    n: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    chat: bool,
) -> list[list[str]]:
    """`sail sample`: n seeded responses to each prompt; `chat` wraps a prompt as a user message."""
    if not temperature > 0 or n < 1 or max_new_tokens < 1:
        raise SailError("sail sample needs a temperature above 0 and at least one response of one token.")
    if (Path(model) / "model" / "config.json").is_file() and not (Path(model) / "config.json").exists():
        model = str(Path(model) / "model")  # a run folder
    tokenizer = make_tokenizer(model)
    loaded = make_model(model)
    settings = SamplingSettings(
        max_new_tokens,
        temperature,
        eos_ids(tokenizer, loaded.generation_config),
        pad_id=tokenizer.pad_token_id,
    )
    encoded = [
        encode_prompt(tokenizer, [{"role": "user", "content": text}] if chat else text) for text in prompts
    ]
    generator = TransformersGenerator(lambda: loaded, tokenizer, settings)
    keys = [(seed, "cli", place, one) for place in range(len(encoded)) for one in range(n)]
    texts = [one.text for one in generator.sample([ids for ids in encoded for _ in range(n)], keys)]
    return [texts[place * n : (place + 1) * n] for place in range(len(encoded))]
