"""KL penalties and the KL estimate against sums by hand and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from sail.objective import kl_estimate, kl_policy_ref_surrogate, kl_ref_policy_loss, nll_loss

F64 = torch.float64
LOGITS = np.array([0.2, -1.0, 1.5, 0.3])
REFERENCE = np.array([0.0, 0.5, -0.5, 1.0])


def gradient_by_differences(divergence) -> np.ndarray:
    """Central differences of a function of the logits, step 1e-5."""
    return np.array([(divergence(LOGITS + s) - divergence(LOGITS - s)) / 2e-5 for s in 1e-5 * np.eye(4)])


def log_tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    theta = torch.tensor(LOGITS, requires_grad=True)
    return theta, theta.log_softmax(0), torch.tensor(REFERENCE).log_softmax(0)


@pytest.mark.parametrize("baseline", [0.0, -2.0])
def test_kl_policy_ref_has_the_gradient_of_scipys_kl(baseline: float) -> None:
    """Summed over responses with the policy's probabilities; value exactly zero."""

    def divergence(logits: np.ndarray) -> float:
        return scipy.special.rel_entr(scipy.special.softmax(logits), scipy.special.softmax(REFERENCE)).sum()

    theta, policy, reference = log_tables()
    surrogate = kl_policy_ref_surrogate(policy - reference, torch.tensor(baseline), policy)
    assert surrogate.abs().max() == 0.0
    (policy.exp().detach() * surrogate).sum().backward()
    np.testing.assert_allclose(theta.grad.numpy(), gradient_by_differences(divergence), atol=1e-9)


def test_kl_ref_policy_is_scipys_kl_in_value_and_gradient() -> None:
    def divergence(logits: np.ndarray) -> float:
        return scipy.special.rel_entr(scipy.special.softmax(REFERENCE), scipy.special.softmax(logits)).sum()

    theta, policy, reference = log_tables()
    value = (reference.exp() * kl_ref_policy_loss(policy, reference)).sum()
    assert value.item() == pytest.approx(divergence(LOGITS), rel=1e-12)
    value.backward()
    np.testing.assert_allclose(theta.grad.numpy(), gradient_by_differences(divergence), atol=1e-9)


def test_kl_policy_ref_by_hand() -> None:
    """(l - b) * 1: log-ratio 3, baseline 1 gives slope 2 on the log-prob, and nothing through the log-ratio."""
    log_prob = torch.tensor([-4.0], dtype=F64, requires_grad=True)
    kl_policy_ref_surrogate(log_prob + 7.0, torch.tensor([1.0], dtype=F64), log_prob).sum().backward()
    assert log_prob.grad.tolist() == [2.0]


def test_nll_by_hand() -> None:
    assert nll_loss(torch.tensor([-4.0, 0.0]), torch.tensor([-1.5, -2.0])).tolist() == [5.5, 2.0]


def test_estimate_by_hand() -> None:
    """Two prompts, two responses: prompt means 2 and 4, their mean 3, standard error |2 - 4| / 2 = 1."""
    assert kl_estimate(torch.tensor([[1.0, 3.0], [3.0, 5.0]])) == (3.0, pytest.approx(1.0))


def test_standard_error_is_clustered_by_prompt() -> None:
    """scipy's standard error of the prompt means; responses to one prompt that agree are no further evidence."""
    random = np.random.default_rng(3)
    ratios = random.normal(size=(40, 1)) + 0.1 * random.normal(size=(40, 4))
    found = kl_estimate(torch.tensor(ratios))
    assert found is not None
    assert found[0] == pytest.approx(ratios.mean(), rel=1e-12)
    assert found[1] == pytest.approx(scipy.stats.sem(ratios.mean(axis=1)), rel=1e-12)
    assert found[1] > 1.5 * scipy.stats.sem(ratios.ravel())


def test_estimate_without_samples_is_none() -> None:
    assert kl_estimate(torch.zeros(0, 2)) is None
    assert kl_estimate(torch.zeros(3, 0)) is None


def test_one_prompt_has_no_standard_error() -> None:
    found = kl_estimate(torch.tensor([[1.0, 2.0]]))
    assert found is not None
    assert found[0] == 1.5
    assert math.isnan(found[1])


def test_estimate_averages_in_float64() -> None:
    """A large common offset does not eat the difference."""
    found = kl_estimate(torch.full((1000, 2), 16777216.0) + torch.tensor([0.0, 2.0]))
    assert found is not None
    assert found[0] == 16777217.0
