"""What `sail data` warns of, each with the way out. A warning is a function of what was measured, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sail.data.selection import ABOVE_LIMIT, OTHER_PART

BIASED = 0.6
"""Share of pairs with the longer answer chosen (or, below 1 - BIASED, the shorter) that the whole interval must lie above."""
MANY_CUT = 0.05
MANY_UNKNOWN = 0.02
MANY_DROPPED = 0.2


def warnings_of(made: dict[str, Any]) -> list[str]:
    """Sentences in plain words, the gravest first; an empty list where nothing is wrong."""
    return [*_rows(made), *_limits(made), *_held_out(made), *_repeats(made), *_bias(made)]


def _rows(made: dict[str, Any]) -> Iterator[str]:
    rows = made["rows"]
    if rows["bad"]:
        yield (
            f"{rows['bad']} rows cannot be used, and would stop a run. Mend them (the first: "
            f"{rows['bad_examples'][0]}), or set data.bad_rows: skip."
        )
    chosen = sum(
        count for reason, count in rows["dropped"].items() if reason not in (ABOVE_LIMIT, OTHER_PART)
    )
    if rows["read"] and chosen / rows["read"] > MANY_DROPPED:
        first = next(reason for reason in rows["dropped"] if reason not in (ABOVE_LIMIT, OTHER_PART))
        yield (
            f"{chosen / rows['read']:.0%} of the rows read are left out, most of them for: {first}. Look at the counts "
            "above; a smaller min_gap keeps more near-ties, drop_repeats: false keeps repeats."
        )
    if rows["prompt_only"] and rows["pairs"]:
        yield (
            f"{rows['prompt_only']} rows have a prompt and no pair, beside {rows['pairs']} pairs: no route that learns "
            "from the data's pairs can use the set. Put those rows into a file of their own, as data.prompts."
        )


def _limits(made: dict[str, Any]) -> Iterator[str]:
    limits = made["limits"]
    if limits is None:
        return
    if limits["unreadable"]:
        yield (
            f"{limits['unreadable']} rows cannot be tokenised (the first: {limits['unreadable_examples'][0]}). Mend "
            "them, or set data.bad_rows: skip."
        )
    if limits["unknown_tokens"] > MANY_UNKNOWN:
        yield (
            f"{limits['unknown_tokens']:.0%} of the tokens are unknown ones: this tokenizer cannot spell these texts, and a "
            "model learns nothing of what it does not see. Take a model whose tokenizer has their language and signs."
        )
    if limits["prompts_too_long"]:
        yield (
            f"{limits['prompts_too_long']} of {limits['rows']} prompts are above the limit, which stops a run. Raise "
            f"max_prompt_length ({limits['max_prompt_length']}) or max_length ({limits['max_length']}), or set "
            "data.bad_rows: skip."
        )
    if limits["rows_with_a_cut"] > MANY_CUT * limits["rows"]:
        yield (
            f"{limits['rows_with_a_cut']} of {limits['rows']} rows have an answer that is cut at max_length "
            f"({limits['max_length']}), and so no end to learn from. Raise max_length."
        )


def _held_out(made: dict[str, Any]) -> Iterator[str]:
    held = made["held_out"]
    if held is None:
        yield (
            "There are no held-out rows, so a run on these cannot be measured. Give --held-out, and data.eval in the "
            "run file: of a file, {path: FILE, split: test} beside {path: FILE, split: train} holds out 5% of the prompts."
        )
    elif held["shared_prompts"]:
        yield (
            f"{held['shared_prompts']} of {held['prompts']} held-out prompts ({held['shared_rows']} rows) are also "
            "trained on, which flatters held-out figures. Set held_out: 0.05 in both sources, with split: train and "
            "split: test, and no prompt is in both."
        )


def _repeats(made: dict[str, Any]) -> Iterator[str]:
    found = made["repeats"]
    if found["identical"]:
        yield (
            f"{found['identical']} pairs have two identical answers: nothing can be learned from them. drop_repeats: "
            "true leaves them out."
        )
    if found["duplicated"]:
        yield (
            f"{found['duplicated']} pairs repeat an earlier one, which gives it more weight. drop_repeats: true leaves "
            "them out."
        )
    if found["contradictory"]:
        yield (
            f"{found['contradictory']} pairs are preferred both ways in the set: people disagree, or the labels are "
            "noisy. They stay in; no model can fit them, so the highest possible accuracy lies below 100%."
        )


def _bias(made: dict[str, Any]) -> Iterator[str]:
    bias = made["length_bias"]
    if bias["low"] is None:
        return
    if bias["low"] > BIASED or bias["high"] < 1 - BIASED:
        side, share = ("longer", bias["mean"]) if bias["low"] > BIASED else ("shorter", 1 - bias["mean"])
        yield (
            f"The {side} answer is the chosen one in {share:.0%} of the pairs, so a model can learn length in place of "
            "quality. Watch response length in the report, and trust the win rate at equal length (sail eval)."
        )
