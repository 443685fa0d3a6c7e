"""Leave-one-out baselines against means written out by hand."""

from __future__ import annotations

import torch

from sail.objective import leave_one_out


def baseline(
    values: list[float], active: list[bool] | None = None, group: list[int] | None = None
) -> list[float]:
    count = len(values)
    return leave_one_out(
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(active or [True] * count),
        torch.tensor(group or list(range(count))),
    ).tolist()


def test_mean_of_the_others() -> None:
    """(-2 - 6) / 2, (-1 - 6) / 2, (-1 - 2) / 2."""
    assert baseline([-1.0, -2.0, -6.0]) == [-4.0, -3.5, -1.5]


def test_one_row_has_none() -> None:
    assert baseline([-3.0]) == [0.0]


def test_rows_that_share_a_response_are_left_out() -> None:
    """Groups {0, 1} and {2}: rows 0 and 1 see only row 2; row 2 sees both of them."""
    assert baseline([-1.0, -3.0, -7.0], group=[5, 5, 9]) == [-7.0, -7.0, -2.0]


def test_one_group_has_no_baseline() -> None:
    assert baseline([-1.0, -3.0], group=[4, 4]) == [0.0, 0.0]


def test_abstained_rows_enter_no_baseline() -> None:
    """Row 1 abstained: it gives nothing to the others, whatever its value. Its own baseline is unused."""
    found = baseline([-1.0, 0.0, -4.0, -7.0], active=[True, False, True, True])
    assert [found[0], found[2], found[3]] == [-5.5, -4.0, -2.5]
    assert baseline([-1.0, float("nan"), -4.0], active=[True, False, True])[::2] == [-4.0, -1.0]


def test_only_abstentions() -> None:
    assert baseline([-1.0, -2.0], active=[False, False]) == [0.0, 0.0]


def test_empty_batch() -> None:
    assert (
        leave_one_out(
            torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.long)
        ).tolist()
        == []
    )


def test_centres_the_batch() -> None:
    """Without groups the centred values sum to zero: sum (F - b) = n / (n - 1) * sum (F - mean)."""
    values = torch.tensor([-0.3, -1.2, -0.7, -2.5], dtype=torch.float64)
    centred = values - leave_one_out(values, torch.ones(4, dtype=torch.bool), torch.arange(4))
    torch.testing.assert_close(centred, 4 / 3 * (values - values.mean()))


def test_order_does_not_matter() -> None:
    values, active = [-1.0, -2.0, -6.0, -3.0], [True, True, False, True]
    forward = baseline(values, active, [0, 1, 2, 0])
    assert baseline(values[::-1], active[::-1], [0, 2, 1, 0])[::-1] == forward
