"""KL penalties between policy and reference, the nll option, and the KL estimate that is logged. All per response."""

from __future__ import annotations

from torch import Tensor


def kl_policy_ref_surrogate(log_ratio: Tensor, baseline: Tensor, log_prob: Tensor) -> Tensor:
    """Gradient of KL(pi || pi_ref) on responses that the policy itself wrote: sg(l - b) * (x - sg(x)); all (N,).

    l = log pi(y|x) - log pi_ref(y|x), x = log pi(y|x), nats per response, b any number independent of y.
    Value zero. Differentiating l itself would be wrong: its expectation is zero. Source: objective.md section 7.
    """
    return (log_ratio - baseline).detach() * (log_prob - log_prob.detach())


def kl_ref_policy_loss(log_prob: Tensor, ref_log_prob: Tensor) -> Tensor:
    """KL(pi_ref || pi) on responses sampled from the *reference*: log pi_ref(y|x) - log pi(y|x); (N,), nats per response.

    On responses of the policy this has zero expected gradient, which is why configs without reference samples are
    refused. Source: arXiv 2606.31524 ("reverse KL").
    """
    return ref_log_prob - log_prob


def nll_loss(first_log_prob: Tensor, second_log_prob: Tensor) -> Tensor:
    """-(log pi(y1|x) + log pi(y2|x)) of dataset responses; (B,), nats per pair. Source: the follow-up's code, there with 1e-3."""
    return -(first_log_prob + second_log_prob)


def kl_estimate(log_ratios: Tensor) -> tuple[float, float] | None:
    """KL(pi || pi_ref) in nats per response and its standard error, from log pi/pi_ref of the policy's own responses.

    log_ratios (P, R): P prompts, R responses each. The error is clustered by prompt: it is that of the mean of P prompt
    means; with one prompt it is nan. None without samples: an estimate without its samples is no number.
    """
    if log_ratios.numel() == 0:
        return None
    per_prompt = log_ratios.double().mean(dim=1)
    error = (per_prompt.var(unbiased=True) / per_prompt.numel()).sqrt() if per_prompt.numel() > 1 else None
    return per_prompt.mean().item(), float("nan") if error is None else error.item()
