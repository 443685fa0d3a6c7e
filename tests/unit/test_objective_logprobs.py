"""Sequence log-probs against a loop over positions with log_softmax and one lookup each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sail.objective import response_log_probs


def by_hand(logits: Tensor, ids: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Position t - 1 predicts token t; a loop, in float64."""
    totals = []
    for row in range(logits.shape[0]):
        total = torch.zeros((), dtype=torch.float64)
        for t in range(1, logits.shape[1]):
            if mask[row, t]:
                total = (
                    total + torch.log_softmax(logits[row, t - 1].double() / temperature, dim=0)[ids[row, t]]
                )
        totals.append(total)
    return torch.stack(totals)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Four sequences of 6 over 7 tokens: prompt then response, padded; all response but the first; one token; none."""
    random = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(4, 6, 7, generator=random, dtype=torch.float64)
    ids = torch.randint(0, 7, (4, 6), generator=random)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]])
    return logits, ids, mask


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_equals_a_loop(batch: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    found = response_log_probs(*batch, temperature)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, by_hand(*batch, temperature), rtol=1e-12, atol=1e-12)


def test_hand_number() -> None:
    """Logits log 1, log 2, log 5 are probabilities 1/8, 2/8, 5/8; at temperature 1/2 they are 1/30, 4/30, 25/30."""
    logits = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log().expand(1, 3, 3)
    ids, mask = torch.tensor([[0, 2, 1]]), torch.tensor([[0, 1, 1]])
    assert response_log_probs(logits, ids, mask).item() == pytest.approx(math.log(5 / 8 * 2 / 8), rel=1e-12)
    tempered = response_log_probs(logits, ids, mask, temperature=0.5).item()
    assert tempered == pytest.approx(math.log(25 / 30 * 4 / 30), rel=1e-12)


def test_only_the_mask_decides_what_counts(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Tokens and logits outside the response change nothing, not even nan: a pad id may equal EOS."""
    logits, ids, mask = batch
    outside = ~mask.bool()
    other_ids = torch.where(outside, (ids + 3) % 7, ids)
    predicts_response = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1).bool()
    other_logits = torch.where(predicts_response.unsqueeze(-1), logits, torch.nan)
    expected = response_log_probs(logits, ids, mask)
    torch.testing.assert_close(response_log_probs(other_logits, other_ids, mask), expected, rtol=0, atol=0)


def test_eos_counts_where_it_was_emitted(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """The finished response scores one token more than the same tokens cut at the limit."""
    logits, ids, mask = batch
    cut = mask.clone()
    cut[0, 4] = 0
    difference = response_log_probs(logits, ids, mask)[0] - response_log_probs(logits, ids, cut)[0]
    assert difference.item() == pytest.approx(torch.log_softmax(logits[0, 3], 0)[ids[0, 4]].item(), rel=1e-12)


def test_batch_of_empty_masks_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    found = response_log_probs(logits, torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3))
    assert found.tolist() == [0.0, 0.0]
    found.sum().backward()
    assert logits.grad.abs().max() == 0.0


@pytest.mark.parametrize("others", [-1000.0, -math.inf])
def test_certain_token_has_log_prob_zero_and_no_nan(others: float) -> None:
    """Probability 1 by a large logit or by a banned rest of the vocabulary: value 0, finite gradient."""
    logits = torch.full((1, 3, 4), others)
    logits[..., 2] = 0.0
    logits.requires_grad_()
    found = response_log_probs(logits, torch.full((1, 3), 2), torch.tensor([[0, 1, 1]]))
    assert found.item() == 0.0
    found.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_and_summed_in_float32(dtype: torch.dtype) -> None:
    """200 tokens: the result is that of the rounded logits to float32's precision; half precision would be off by more."""
    random = torch.Generator().manual_seed(1)
    logits = (2.0 * torch.randn(1, 201, 50, generator=random)).to(dtype)
    ids, mask = torch.randint(0, 50, (1, 201), generator=random), torch.ones(1, 201)
    found = response_log_probs(logits, ids, mask)
    exact = by_hand(logits, ids, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    coarse = torch.log_softmax(logits[:, :-1], -1).gather(2, ids[:, 1:].unsqueeze(2)).sum()
    assert abs(coarse.item() - exact.item()) > 100 * abs(found.item() - exact.item())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_is_one_hot_minus_softmax(batch: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    """d log pi / d logits = (one_hot(token) - softmax(logits / T)) / T where the mask is 1, else 0."""
    logits, ids, mask = batch
    logits = logits.requires_grad_()
    response_log_probs(logits, ids, mask, temperature).sum().backward()
    expected = torch.zeros_like(logits)
    for row in range(4):
        for t in range(1, 6):
            if mask[row, t]:
                one_hot = torch.nn.functional.one_hot(ids[row, t], 7)
                softmax = (logits[row, t - 1].detach() / temperature).softmax(0)
                expected[row, t - 1] = (one_hot - softmax) / temperature
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-12)


def test_sequences_do_not_mix(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    """Each row alone gives what it gives in the batch: the flat selection is scattered back to its own row."""
    whole = response_log_probs(*batch)
    alone = torch.cat([response_log_probs(*(x[row : row + 1] for x in batch)) for row in range(4)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-13)
