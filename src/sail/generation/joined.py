"""Pairs whose prompt is read once: prompt, first and second response as one sequence, in which neither response sees the other.

Both responses of a pair follow the same prompt, so two sequences have it twice. In one sequence the second response's tokens
have the positions that they would have behind the prompt alone, and a mask hides the first response from them. Each token's
hidden state is that of the two sequences, rounding aside.

Not in float64, which is for proofs: transformers' norms compute in float32 whatever the model's type, so the gradients of a
prompt read once and read twice would differ by 1e-7 there. The proof of this path is on a model without such norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sail.data.collate import pad_pairs, prompt_columns, response_positions
from sail.generation.decoding import is_full_attention_decoder

TRIAL = (([3, 4, 5], [6, 7], [8, 9, 10]), ([11, 12], [13, 14, 15], [16]))
"""Prompts with their two responses, of lengths that pad every part."""
TOLERANCE, HALF_TOLERANCE = 5e-3, 0.05
"""Of the trial's hidden states, relative to the largest: room for TF32, and for half precision. That positions and masks count at
all is asked apart, to the bit."""
APART = {torch.float64}
"""Types in which pairs are never joined."""
STATE = ("dtype", "device", "_attn_implementation")
"""Of the model, the model and its configuration: when one of them changes, it is tried again."""
RULE = "6HT>M"
"""Names `pays`, where numbers are kept that depend on it in their last digits."""

_found: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Joined:
    """B pairs as B sequences of J tokens. inputs: what the model is called with. places: (M,), where in the flat (B, J) the next
    token is one of a response, in the order of the 2B separate sequences."""

    inputs: dict[str, Tensor]
    places: Tensor


def join(model: Any, batch: dict[str, Any], places: Tensor) -> Joined | None:
    """The batch's pairs joined, or None where they are not pairs, where `model` cannot read them, or where it would not pay.

    batch: as by `online.collate`, on the model's device. places: (M,), in the flat (2B, L), in order.
    """
    if "joined_length" not in batch or not joins(model) or not pays(model, batch):
        return None
    return joined(model, batch, places)


def pays(model: Any, batch: dict[str, Any]) -> bool:
    """Whether fewer tokens outweigh the longer rows' attention, and there are positions enough.

    With width H a layer's matrices cost about 24 H^2 operations per token, its attention 4 H per query and key, so T tokens less
    pay for up to 6 H T more queries times keys. Measured on a CPU at both sides of that line (LOG.md). Rows without padding need
    no mask while they are apart, and half as many.
    """
    config = model.config.get_text_config()
    rows, length = batch["input_ids"].shape
    pairs, longer = rows // 2, batch["joined_length"]
    # Some families' causal mask is a square of so many columns.
    if longer > (getattr(config, "max_position_embeddings", None) or longer):
        return False
    fewer_tokens = rows * length - pairs * longer
    attention_apart = rows * length**2 / (2 if batch["even"] else 1)
    return bool(6 * config.hidden_size * fewer_tokens > pairs * longer**2 - attention_apart)


def joined(model: Any, batch: dict[str, Any], places: Tensor) -> Joined:
    """See `join`. A column j of pair b with prompt p and responses r1, r2 is of the second response from p + r1 on."""
    ids, lengths, prompt = batch["input_ids"], batch["lengths"], batch["prompt_lengths"][:, None]
    pairs, width = len(ids) // 2, ids.shape[1]
    first_length = lengths[:pairs, None]
    column = torch.arange(batch["joined_length"], device=ids.device)
    of_second = column >= prompt + first_length
    # Behind a pair's end there is padding, which nobody sees; its positions must exist all the same.
    positions = torch.where(of_second, column - first_length, column).clamp(max=width - 1)
    tokens = torch.where(of_second, ids[pairs:].gather(1, positions), ids[:pairs].gather(1, positions))
    of_first = (column >= prompt) & ~of_second
    hidden = (column[:, None] < column) | (of_second[:, :, None] & of_first[:, None, :])
    return Joined(
        {"input_ids": tokens, "position_ids": positions, "attention_mask": _to_add(hidden, model)},
        _moved(places, prompt.squeeze(1), first_length.squeeze(1), width, len(column)),
    )


def _to_add(hidden: Tensor, model: Any) -> Tensor:
    """(B, J, J) -> (B, 1, J, J), something to add, in the type of the weights."""
    zero = torch.zeros(hidden.shape, dtype=model.dtype, device=hidden.device)
    return zero.masked_fill_(hidden, torch.finfo(model.dtype).min).unsqueeze(1)


@contextmanager
def mask_in_type_of_queries(model: Any) -> Iterator[None]:
    """Mixed precision begins inside the model's forward, where accelerate has put it: there the mask is cast, once, and not by
    every layer for itself, which would keep a copy for the backward pass."""
    handle = model.base_model.register_forward_pre_hook(_cast_mask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _cast_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    mask = kwargs.get("attention_mask")
    if mask is None or not torch.is_autocast_enabled(mask.device.type):
        return None
    return args, {**kwargs, "attention_mask": mask.to(torch.get_autocast_dtype(mask.device.type))}


def _moved(places: Tensor, prompt: Tensor, first_length: Tensor, width: int, longer: int) -> Tensor:
    """From the flat (2B, L) to the flat (B, J): a second response's tokens lie behind the first one's, its first token is
    predicted at the prompt's end."""
    row, at = places // width, places % width
    pair = row % len(prompt)
    behind = (row >= len(prompt)) & (at >= prompt[pair])
    return pair * longer + at + torch.where(behind, first_length[pair], 0)


def joins(model: Any) -> bool:
    """Whether the model, without its wrappers, says of joined pairs what it says of separate ones: a decoder of transformers' own
    with full attention, not in float64, that passes a trial, once per model, type, attention and device."""
    config = getattr(model, "config", None)
    state = tuple(getattr(one, name, None) for one, name in zip((model, model, config), STATE, strict=True))
    known = _found.setdefault(model, {})
    if state not in known:
        known[state] = _decided(model)
    return known[state]


def _decided(model: Any) -> bool:
    try:
        return model.dtype not in APART and _looks_able(model) and _trial_passed(model)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # Whatever a strange model raises: its pairs stay apart.
        return False


def _looks_able(model: Any) -> bool:
    """Attention that looks at columns (a window inside full attention, the nearest of many keys, a temperature by place) would
    see the second response too far away; where it begins at hundreds of columns, no short trial finds it."""
    config = model.config.get_text_config()
    by_column = (
        "local" in (getattr(config, "attention_layers", None) or ())  # GPT-Neo
        or getattr(config, "keep_window_size", None) is not None  # Doge
        or bool(getattr(config, "attn_temperature_tuning", False))  # Llama 4
    )
    ours = type(model).__module__.startswith("transformers.models.")
    return ours and not by_column and is_full_attention_decoder(model) and config.hidden_size > 0


def _trial_passed(model: Any) -> bool:
    """Hidden states that predict response tokens, joined and apart: not the log-probs, because a young model's hardly differ. And
    another mask, and other positions, must change them, or the model passes them by."""
    batch = trial_batch(model.device, model.config.get_text_config().vocab_size)
    places = response_positions(batch["response_mask"])
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), mask_in_type_of_queries(model):
            apart = _hidden(model, {name: batch[name] for name in ("input_ids", "attention_mask")})
            made = joined(model, batch, places)
            together = _hidden(model, made.inputs)
            mistaken = [_hidden(model, {**made.inputs, **one}) for one in mistakes(made)]
    finally:
        model.train(was_training)
        # An autocast around us must not go on with the weights that it cast without gradient here.
        torch.clear_autocast_cache()
    expected = apart.flatten(0, 1)[places].float()
    error = (together.flatten(0, 1)[made.places].float() - expected).abs().max()
    half = hasattr(model, "_original_forward") or model.dtype in (torch.float16, torch.bfloat16)
    near = error <= (HALF_TOLERANCE if half else TOLERANCE) * expected.abs().max()
    return bool(near) and not any(torch.equal(one, together) for one in mistaken)


def mistakes(made: Joined) -> list[dict[str, Tensor]]:
    """Inputs that are wrong on purpose: the second response sees the first one; it stands behind it."""
    mask, positions = made.inputs["attention_mask"], made.inputs["position_ids"]
    width = positions.shape[1]
    causal = torch.full((width, width), float(mask.min()), dtype=mask.dtype, device=mask.device).triu(1)
    in_a_row = torch.arange(width, device=positions.device).expand_as(positions)
    return [{"attention_mask": causal.expand_as(mask)}, {"position_ids": in_a_row}]


def _hidden(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What the head is given, (N, L, H)."""
    seen: list[Tensor] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        model(**inputs, use_cache=False)
    finally:
        handle.remove()
    (hidden,) = seen
    return hidden


def trial_batch(device: torch.device, words: int) -> dict[str, Any]:
    """The trial's pairs as `online.collate` makes them, as far as they are needed here."""
    sequences = [(list(prompt), list(one[side])) for side in (0, 1) for prompt, *one in TRIAL]
    batch: dict[str, Any] = {name: value.to(device) for name, value in pad_pairs(sequences, 0).items()}
    batch["input_ids"] = batch["input_ids"] % words
    batch["lengths"] = torch.tensor([len(response) for _, response in sequences], device=device)
    batch.update(prompt_columns([prompt for prompt, *_ in TRIAL], batch["lengths"].tolist(), device))
    return batch
