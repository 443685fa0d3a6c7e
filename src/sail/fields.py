"""The one table of sail's own training options. No torch: the YAML schema and SAILConfig are both made from it.

Every option is explained once, in its metadata; `sail init`, `--help` texts and the docs take it from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    # HfArgumentParser takes `choices` of a flag for a mistake, so it is only there where it says something.
    metadata = {"help": help} | ({"choices": choices} if choices else {})
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class AlignmentFields:
    """Options of online alignment; every field of transformers.TrainingArguments is accepted beside these."""

    preset: str | None = _option(
        None,
        "A named row of the preset table (dpo, ipo, slic, online-dpo, iterative-dpo, self-dpo, spin, sail-ddp, sail-dpp, "
        "sail-dpr, sail-mix). Exclusive with routes.",
    )
    routes: dict[str, Any] | None = _option(
        None,
        "The mixture: for each route (data, ddp, dpp, dpr, spin, replay) its weight and, where the policy takes part, the "
        "coefficient c of its corrections (T1, T3). Weights sum to 1; c = 1 is the exact gradient, c < 1 a heuristic scaling. "
        "final_weight lets a weight go linearly to another value by the last step.",
    )
    beta: float = _option(
        0.1, "Inverse strength of the KL tie to the reference, in 1/nats; larger stays closer."
    )
    loss_type: str = _option(
        "sigmoid", "Pair loss: sigmoid (DPO), ipo, or hinge (SLiC).", ("sigmoid", "ipo", "hinge")
    )
    policy_label: str = _option(
        "soft",
        "How the policy's own probability becomes a label: soft keeps it, sampled draws, argmax takes the likelier.",
        ("soft", "sampled", "argmax"),
    )
    oracle_label: str = _option(
        "soft",
        "How the oracle's probability becomes a label: soft keeps it, sampled draws, argmax takes the likelier.",
        ("soft", "sampled", "argmax"),
    )
    ask_share: float = _option(
        1.0,
        "Share of the fresh pairs of route dpr that the oracle is asked about: those whose winner the policy is least sure "
        "of. The rest is left out of the step. Below 1 the coefficient of dpr must be 0.",
    )
    min_confidence: float = _option(
        0.5,
        "Self-labelled rows whose likelier verdict is less probable than this, by the policy's own implicit reward, are "
        "left out; 0.5 keeps all.",
    )
    baseline: str = _option(
        "leave_one_out",
        "Baseline of T1: the mean of F over the other on-policy rows of the global batch, or none (for study only).",
        ("leave_one_out", "none"),
    )
    kl_policy_ref: float = _option(
        0.0, "Coefficient of KL(policy || reference), estimated from on-policy rows by its score function."
    )
    kl_ref_policy: float = _option(
        0.0,
        "Coefficient of KL(reference || policy); needs rows sampled from the reference (data_from_reference).",
    )
    data_from_reference: bool = _option(
        False, "States that the dataset's responses were sampled from the reference; kl_ref_policy needs it."
    )
    nll: float = _option(
        0.0, "Coefficient of the negative log-likelihood of both dataset responses, nats per pair."
    )
    max_length: int = _option(
        1024, "Longest prompt + response in tokens; longer dataset responses are cut, without an EOS."
    )
    max_prompt_length: int = _option(512, "Longest prompt in tokens; a longer one is a bad row.")
    max_new_tokens: int = _option(256, "Longest sampled response in tokens; one cut here has no EOS.")
    temperature: float = _option(
        1.0,
        "Sampling temperature. At another value than 1 the corrections differentiate the tempered policy.",
    )
    stop_strings: list[str] | None = _option(
        None, "Strings that end a sampled response, beside the EOS tokens."
    )
    samples_per_prompt: int = _option(
        2,
        "Responses sampled per prompt of routes dpp and dpr: 2 with pairing: two, more with best_worst. Route spin takes one.",
    )
    pairing: str = _option(
        "two",
        "How samples become a pair: two uses both; best_worst takes the best and the worst of samples_per_prompt by the "
        "oracle's scores, and its own probability for that pair. n scores count as n/2 oracle calls, because a call is a "
        "pair. Needs an oracle that scores, and coefficient 0: best and worst are not drawn independently.",
        ("two", "best_worst"),
    )
    refresh: str = _option(
        "step",
        "When responses are sampled and labelled: step, afresh at every optimiser step; round, all of a round's at its first "
        "step. Later steps of a round have stale rows, which importance ratios correct where a coefficient is above 0.",
        ("step", "round"),
    )
    round_steps: int | None = _option(
        None, "Optimiser steps of a round, for refresh: round; null = one pass over the training rows."
    )
    ratio_clip: float | None = _option(
        None,
        "Upper limit of the importance ratio of stale rows, for refresh: round with a coefficient above 0. It lowers the "
        "variance and biases the gradient; null = no limit.",
    )
    ref_update: str = _option(
        "never",
        "When the reference is replaced by the policy: never, or round, at the first step of each round but the first. "
        "results.json and the held-out KL always compare with the reference that the run began with.",
        ("never", "round"),
    )
    disable_dropout: bool = _option(True, "Switch all dropout off, LoRA's too; corrections need it.")
    precompute_ref_log_probs: bool = _option(
        False, "Compute the reference log-probs of dataset rows once, before training."
    )
    ref_cache: str | None = _option(
        None,
        "Folder that keeps precomputed reference log-probs for other runs, by fingerprints of the reference's weights and of "
        "the rows; null = ref_cache in output_dir, for this run's resumes.",
    )
    logprob_chunk: int | None = _option(
        None,
        "Response positions whose logits are made at once, and again in the backward pass; null = all, or chunks of 128 MiB "
        "where they are larger; 0 = the model's own logits of all positions, and each response behind a prompt of its own.",
    )
    generation_batch_size: int | None = _option(
        None, "Rows per generate call; null samples the whole optimiser step in one call."
    )
    eval_samples: int = _option(
        0,
        "Held-out prompts to answer at each evaluation: one seeded sample each, scored by the oracle; 0 is off.",
    )
    final_samples: int = _option(
        512,
        "Held-out prompts that the policy and the reference answer when the run ends, for results.json; a paid judge is asked "
        "about each, so fewer cost less, with wider intervals. 0 measures nothing at the end.",
    )
    kl_limit: float | None = _option(
        None,
        "Stop when KL(policy || reference), in nats per response, averaged since the last log line, is above this.",
    )
    record_pairs: bool = _option(True, "Write every on-policy pair to pairs.jsonl.gz in the run folder.")
    max_skipped_steps: int = _option(
        5,
        "End the run after so many steps in a row whose gradient was not finite; each such update is left out and counted.",
    )
    use_vllm: bool = _option(
        False, "Sample with vLLM instead of transformers; needs the extra vllm and GPUs (docs/scale.md)."
    )
    vllm_mode: str = _option(
        "colocate",
        "Where vLLM runs: colocate, in the training processes; server, behind vllm_server_base_url (LoRA only).",
        ("colocate", "server"),
    )
    vllm_server_base_url: str | None = _option(
        None, "Address of a `vllm serve` that reads this machine's files, such as http://127.0.0.1:8000."
    )
    vllm_gpu_memory_utilization: float = _option(
        0.3, "Share of each GPU's memory that a colocated vLLM may take for weights and cache."
    )
    vllm_tensor_parallel_size: int = _option(
        1, "GPUs that one colocated vLLM is spread over; divides the number of processes."
    )
    vllm_enable_sleep_mode: bool = _option(
        False, "Give a colocated vLLM's memory back while the model is trained."
    )
    vllm_importance_sampling_correction: bool = _option(
        False,
        "Treat what vLLM sampled as stale rows: importance ratios correct the difference between its numbers and the training's.",
    )


MAY_CHANGE = frozenset(
    {
        "max_skipped_steps",
        "vllm_server_base_url",
        "vllm_gpu_memory_utilization",
        "vllm_tensor_parallel_size",
        "vllm_enable_sleep_mode",
    }
)
"""Options that a resumed run may have other values of: they say nothing about what is computed."""

LOGS_AND_SAVES = frozenset(
    {
        *("disable_tqdm", "report_to", "run_name", "log_level", "log_level_replica", "log_on_each_node"),
        *("logging_dir", "logging_first_step", "logging_steps", "logging_strategy", "logging_nan_inf_filter"),
        *("save_steps", "save_strategy", "save_total_limit", "save_on_each_node"),
    }
)
"""Keys of TrainingArguments that say when something is logged or saved, and nothing about what is computed."""
