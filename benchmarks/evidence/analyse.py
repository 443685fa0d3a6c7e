"""What the study found: results/evidence.json, the tables of docs/evidence.md and its figures, from the committed runs.

    python benchmarks/evidence/analyse.py

The text between `<!-- NAME -->` and `<!-- end -->` in docs/evidence.md is written here, nothing else in it is touched.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from frontier import (  # noqa: E402
    ALONG,
    Curve,
    Floats,
    compared,
    curve_of,
    gap_at_equal_kl,
    interval,
    over_seeds,
    read_at,
    resamples,
)
from run import results  # noqa: E402

DOCUMENT = HERE.parents[1] / "docs" / "evidence.md"
SUMMARY = HERE.parent / "results" / "evidence.json"
Curves = dict[tuple[str, str], dict[int, Curve]]


def curves(runs: list[dict[str, Any]]) -> Curves:
    """All runs as curves: (part, name) -> seed -> curve."""
    starts = {run["seed"]: run["checkpoints"][0]["reward"] for run in runs if run["part"] == "start"}
    found: Curves = defaultdict(dict)
    for run in runs:
        if run["part"] != "start" and run["seed"] in starts:
            found[run["part"], run["name"]][run["seed"]] = curve_of(run, starts[run["seed"]])
    return dict(found)


# ---- what is measured of two runs


def at_equal_kl(one: Curve, other: Curve, weights: Floats) -> Floats:
    """At nine tenths of the largest KL that both reach."""
    return gap_at_equal_kl(one, other, weights, [0.9])


def along_the_frontier(one: Curve, other: Curve, weights: Floats) -> Floats:
    """Averaged over KL from a quarter of the largest common KL to it."""
    return gap_at_equal_kl(one, other, weights, ALONG)


def at_the_end(one: Curve, other: Curve, weights: Floats) -> Floats:
    """At equal optimiser steps."""
    return (weights @ (one.reward[-1] - other.reward[-1])[:, None])[:, 0]


def kl_at_the_end(one: Curve, other: Curve, weights: Floats) -> Floats:
    """The difference in KL at equal optimiser steps, nats per response."""
    return (weights @ (one.kl[-1] - other.kl[-1])[:, None])[:, 0]


def at_equal_calls(one: Curve, other: Curve, weights: Floats) -> Floats:
    """At the number of oracle calls that both reach."""
    calls = float(min(one.calls[-1], other.calls[-1]))
    return _reward_at_calls(one, weights, calls) - _reward_at_calls(other, weights, calls)


def _reward_at_calls(curve: Curve, weights: Floats, calls: float) -> Floats:
    rewards = curve.means(weights)[1]
    import numpy as np

    return read_at(np.broadcast_to(curve.calls, rewards.shape), rewards, calls)


def share_of(one: Curve, other: Curve, weights: Floats) -> Floats:
    """Final gold reward as a share of the other's."""
    return (weights @ one.reward[-1]) / (weights @ other.reward[-1])


def share_of_gain(one: Curve, other: Curve, weights: Floats) -> Floats:
    """Final gain over the start as a share of the other's: independent of where the reward's zero lies."""
    return (weights @ (one.reward[-1] - one.reward[0])) / (weights @ (other.reward[-1] - other.reward[0]))


PENALISED = ("cures", "dpo kl_ref .01")
"""DPO under the follow-up's penalty KL(reference || policy): the strongest run without an oracle that samples nothing."""
MEASURES = {
    "equal_kl": at_equal_kl,
    "frontier": along_the_frontier,
    "equal_steps": at_the_end,
    "kl": kl_at_the_end,
}


def summary(found: Curves) -> dict[str, Any]:
    """Every composition against DPO at the same learning rate, and against penalised DPO; label efficiency against online DPO."""
    told: dict[str, Any] = {}
    again = found.get(("confirm", "online-dpo"), {})
    dpo, online = found.get(("methods", "dpo"), {}), found.get(("methods", "online-dpo"), {})
    penalised = found.get(PENALISED, {})
    for (part, name), runs in found.items():
        base = found.get((part, f"dpo {name.split()[-1]}"), {}) if part == "rates" else dpo
        entry: dict[str, Any] = {"end": _ends(runs)}
        rival = again if part == "confirm" else online
        if base and runs is not base and part != "confirm":
            entry["minus_dpo"] = {key: compared(runs, base, measure) for key, measure in MEASURES.items()}
        if penalised and part in ("methods", "cures") and runs is not penalised:
            entry["minus_penalised"] = {
                key: compared(runs, penalised, measure) for key, measure in MEASURES.items()
            }
        if rival and part in ("labels", "methods", "confirm") and runs is not rival and _ends(runs)["calls"]:
            entry["against_online"] = _against_online(runs, rival)
        told[f"{part}/{name}"] = entry
    return told


def _against_online(runs: dict[int, Curve], online: dict[int, Curve]) -> dict[str, Any]:
    measures = {
        "share": share_of,
        "share_of_gain": share_of_gain,
        "frontier": along_the_frontier,
        "equal_kl": at_equal_kl,
        "kl": kl_at_the_end,
        "equal_calls": at_equal_calls,
    }
    shares = [runs[seed].calls[-1] / online[seed].calls[-1] for seed in runs if seed in online]
    return {
        **{key: compared(runs, online, measure) for key, measure in measures.items()},
        "calls": over_seeds(shares),
    }


def _ends(runs: dict[int, Curve]) -> dict[str, Any]:
    """The last checkpoint: mean over seeds, and each seed's interval over prompts."""
    per_seed = {
        seed: {
            key: interval(resamples(values.shape[1], seed) @ values[-1])
            for key, values in (("reward", curve.reward), ("kl", curve.kl))
        }
        for seed, curve in sorted(runs.items())
    }
    mean = {key: over_seeds([one[key]["mean"] for one in per_seed.values()]) for key in ("reward", "kl")}
    return {
        **mean,
        "calls": over_seeds([curve.calls[-1] for curve in runs.values()])["mean"],
        "seeds": per_seed,
    }


def main() -> None:
    """Analyse, write the summary, fill the document, draw."""
    from figures import draw
    from tables import tables

    runs = results()
    found = curves(runs)
    told = summary(found)
    hours = sum(run["seconds"] for run in runs) / 3600
    everything = {"runs": len(runs), "core_hours_of_training": round(hours, 2), "compared": told}
    SUMMARY.write_text(json.dumps(_rounded(everything), indent=1, allow_nan=False), encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, table in tables(json.loads(SUMMARY.read_text(encoding="utf-8"))).items():
        if f"<!-- {name} -->" not in text:
            raise SystemExit(
                f"{DOCUMENT} has no place for the table {name}: <!-- {name} --> ... <!-- end -->"
            )
        text = filled(text, name, table)
    DOCUMENT.write_text(text, encoding="utf-8")
    draw(found, told, DOCUMENT.parent / "evidence")
    print(f"{len(runs)} runs, {hours:.2f} core-hours of training: {SUMMARY}, {DOCUMENT}")


def filled(text: str, name: str, table: str) -> str:
    """The document with the named table in its place, if it has one."""
    return re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{table}\n{found[2]}",
        text,
        flags=re.S,
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
