"""OpenAI summarize-from-feedback (comparisons): a post or an article, two summaries, and which one a person preferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail.data.named.base import (
    EMPTY_ANSWER,
    EMPTY_PROMPT,
    NO_VERDICT,
    Answered,
    Choice,
    NamedSet,
    Unusable,
    Variant,
    as_list,
    as_user,
    is_empty,
    verdict,
)

TWO_SUMMARIES = "there are not two summaries"


def convert(row: Mapping[str, Any], choice: Choice) -> Answered | Unusable:
    """`choice` is the place of the preferred summary. The prompt ends with "TL;DR:" and the summary goes on from it."""
    better, summaries = verdict(row["choice"]), as_list(row["summaries"])
    if better is None:
        return Unusable(NO_VERDICT)
    if len(summaries) != 2:
        return Unusable(TWO_SUMMARIES)
    prompt = _prompt(row["info"] or {})
    if prompt is None:
        return Unusable(EMPTY_PROMPT)
    texts = [summaries[place]["text"] for place in (better, 1 - better)]
    if any(is_empty(text) for text in texts):
        return Unusable(EMPTY_ANSWER)
    chosen, rejected = (text.strip() for text in texts)
    if choice.shape == "chat":
        return Answered(as_user(prompt), chosen, rejected)
    return Answered(prompt, f" {chosen}", f" {rejected}", opening=as_user(prompt))


def _prompt(info: Mapping[str, Any]) -> str | None:
    """Subreddit, title and post as far as they are there; for news the article. None if there is nothing to summarise."""
    post, article = info.get("post"), info.get("article")
    body = article if is_empty(post) else post
    if is_empty(body) or not isinstance(body, str):
        return None
    lines = []
    if not is_empty(info.get("subreddit")):
        lines.append(f"SUBREDDIT: r/{info['subreddit'].strip()}")
    if not is_empty(info.get("title")):
        lines.append(f"TITLE: {info['title'].strip()}")
    lines.append(f"{'ARTICLE' if is_empty(post) else 'POST'}: {body.strip()}")
    return "\n\n".join([*lines, "TL;DR:"])


SET = NamedSet(
    name="summarize-from-feedback",
    about="posts and news with two summaries; which one a person preferred",
    columns=("info", "summaries", "choice"),
    convert=convert,
    variants={
        "comparisons": Variant(
            "openai/summarize_from_feedback",
            splits={"train": "train", "test": "validation"},
            config="comparisons",
            data_dirs=("comparisons",),
            revision="refs/convert/parquet",
        )
    },
    shape="text",
)
