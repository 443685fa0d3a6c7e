"""What a run will cost, as far as it does not depend on what is drawn."""

from __future__ import annotations

from sail.fields import AlignmentFields
from sail.mixture import Mixture


def expected_cost(mixture: Mixture, options: AlignmentFields, rows: int) -> tuple[float, float]:
    """Responses sampled and oracle calls of a run that sees `rows` rows in all, in expectation over the routes.

    A call is a pair: best_worst scores every sample, and two scores are a call; ask_share leaves pairs unasked.
    """
    shares = [(share, mixture.mean_weight(share)) for share in mixture.shares]
    sampled = sum(weight * share.route.samples(options.samples_per_prompt) for share, weight in shares)
    asked = sum(weight for share, weight in shares if share.route.label == "oracle")
    per_row = options.samples_per_prompt / 2 if options.pairing == "best_worst" else options.ask_share
    return sampled * rows, asked * per_row * rows
