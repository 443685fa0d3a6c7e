"""Pairs whose prompt is read once: prompt, first and second response as one sequence, in which neither response sees the other.

Both responses of a pair follow the same prompt, so two sequences have it twice. In one sequence the second response's tokens
have the positions that they would have behind the prompt alone, and a mask hides the first response from them. Each token's
hidden state is that of the two sequences, rounding aside.

Not in float64, which is for proofs: transformers' norms compute in float32 whatever the model's type, so the gradients of a
prompt read once and read twice would differ by 1e-7 there. The proof of this path is on a model without such norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sail.data.collate import pad_pairs
from sail.generation.decoding import is_full_attention_decoder

TRIAL = (([3, 4, 5], [6, 7], [8, 9, 10]), ([11, 12], [13, 14, 15], [16]))
"""Prompts with their two responses, of lengths that pad every part."""
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4}
"""Of the trial's hidden states, relative to the largest: a tenth of what a wrong position does to a model fresh from its
initialisation. In half precision 0.05, which finds a mask that is passed by, and in such a model no wrong position."""
APART = {torch.float64}
"""Types in which pairs are never joined."""

_found: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


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
    if "joined_length" not in batch or not pays(model, batch) or not joins(model):
        return None
    return joined(model, batch, places)


def pays(model: Any, batch: dict[str, Any]) -> bool:
    """Whether fewer tokens outweigh the longer rows' attention, and there are positions enough.

    With width H a layer's matrices cost about 24 H^2 operations per token, its attention 4 H per query and key, so T tokens less
    pay for up to 6 H T more queries times keys. Measured on a CPU at both sides of that line (LOG.md).
    """
    config = model.config.get_text_config()
    rows, length = batch["input_ids"].shape
    pairs, longer = rows // 2, batch["joined_length"]
    if longer > (getattr(config, "max_position_embeddings", None) or longer):
        return False
    fewer_tokens = rows * length - pairs * longer
    more_attention = pairs * longer**2 - rows * length**2
    return bool(6 * config.hidden_size * fewer_tokens > more_attention)


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
    """(B, J, J) -> (B, 1, J, J), something to add in the type of the queries: all layers share it as it is."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    zero = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zero.masked_fill_(hidden, torch.finfo(dtype).min).unsqueeze(1)


def _moved(places: Tensor, prompt: Tensor, first_length: Tensor, width: int, longer: int) -> Tensor:
    """From the flat (2B, L) to the flat (B, J): a second response's tokens lie behind the first one's, its first token is
    predicted at the prompt's end."""
    row, at = places // width, places % width
    pair = row % len(prompt)
    behind = (row >= len(prompt)) & (at >= prompt[pair])
    return pair * longer + at + torch.where(behind, first_length[pair], 0)


def joins(model: Any) -> bool:
    """Whether the model, without its wrappers, says of joined pairs what it says of separate ones: a decoder with full attention,
    not in float64, that passes a trial, once per model."""
    if model.dtype in APART:
        return False
    if model not in _found:
        _found[model] = is_full_attention_decoder(model) and _trial_passed(model)
    return _found[model]


def _trial_passed(model: Any) -> bool:
    """Hidden states that predict response tokens, joined and apart. Not the log-probs: a young model's hardly differ."""
    batch = trial_batch(next(model.parameters()).device, model.config.get_text_config().vocab_size)
    places = batch["response_mask"][:, 1:].flatten().nonzero().squeeze(1)
    places += places // (batch["input_ids"].shape[1] - 1)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            apart = _hidden(model, {name: batch[name] for name in ("input_ids", "attention_mask")})
            made = joined(model, batch, places)
            together = _hidden(model, made.inputs)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):
        return False
    finally:
        model.train(was_training)
        torch.clear_autocast_cache()
    expected = apart.flatten(0, 1)[places].float()
    error = (together.flatten(0, 1)[made.places].float() - expected).abs().max()
    return bool(error <= TOLERANCES.get(model.dtype, 0.05) * expected.abs().max())


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


def prompt_columns(
    prompts: list[list[int]], lengths: list[int], device: torch.device | None = None
) -> dict[str, Any]:
    """prompt_lengths: (B,). joined_length: J, tokens of the longest pair as one sequence. lengths: of the 2B responses."""
    own = [len(prompt) for prompt in prompts]
    both = zip(own, lengths[: len(own)], lengths[len(own) :], strict=True)
    return {
        "prompt_lengths": torch.tensor(own, dtype=torch.long, device=device),
        "joined_length": max(map(sum, both), default=0),
    }
