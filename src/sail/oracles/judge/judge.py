"""A language model as judge, behind any OpenAI-compatible server: of two responses (Judge), or of one at a time (ScoreJudge)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sail.errors import ConfigError, OracleError
from sail.oracles.calls import CallOracle, Caps, Patience, Retry
from sail.oracles.judge.client import Client
from sail.oracles.judge.reply import Reply, read_reply, soft_verdict
from sail.oracles.judge.rubric import load_rubric
from sail.oracles.judge.scoring import JudgedScores, bradley_terry, score_of, to_unit
from sail.oracles.judge.verdicts import Reading, read_score, read_verdict
from sail.oracles.ledger import Answer, Call, Ledger
from sail.request_fields import refused_field
from sail.types import Message, Pair, Preference, Prompt

FORMAT = 2
"""Of fence and reading; part of settings(), so that a ledger tells answers apart that were asked for or read otherwise."""
TOP_LOG_PROBS = 5
"""As many as every server gives."""


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, in any currency; 0 for one's own machine."""

    tokens_in: float = 0.0
    tokens_out: float = 0.0

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """What a call costs.

        >>> Prices(2.5, 10.0).of(1_000_000, 100_000)
        3.5
        """
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


class _ServedJudge(CallOracle):
    """What both kinds share: the request, the reply, and what it cost."""

    mode: str
    asks_log_probs: bool

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        rubric: str | Path = "helpfulness",
        temperature: float = 0.0,
        max_tokens: int = 1024,
        timeout: float = 60.0,
        prices: Prices | None = None,
        extra: Mapping[str, Any] | None = None,
        name: str | None = None,
        ledger: Ledger | None = None,
        caps: Caps | None = None,
        patience: Patience | None = None,
        concurrency: int = 8,
    ) -> None:
        """url: base of the server's API, such as http://127.0.0.1:8000/v1. api_key_env: name of the
        environment variable with the key. rubric: helpfulness, safety, or a prompt file. temperature: of the
        judge's sampling. timeout: seconds per call. extra: fields for the request beside these, where None
        takes a field away; secrets and what sail fills itself (model, messages, stream, n) are refused. Raises
        ConfigError, OracleError (no key) or MissingExtraError."""
        super().__init__(
            name or f"judge {model}", ledger=ledger, caps=caps, patience=patience, concurrency=concurrency
        )
        if not model:
            raise ConfigError("oracle.model must name the model as the server knows it.")
        if max_tokens < 1 or temperature < 0:
            raise ConfigError("A judge needs max_tokens of at least 1 and a temperature of at least 0.")
        why = refused_field(extra or {})
        if why is not None:
            raise ConfigError(f"oracle.extra {why}.")
        self.model, self.temperature, self.max_tokens = model, temperature, max_tokens
        self.prices, self.extra = prices or Prices(), dict(extra or {})
        self.rubric = load_rubric(rubric, self.mode)
        self.client = Client(url, api_key_env=api_key_env, timeout=timeout, connections=concurrency)

    def settings(self) -> dict[str, Any]:
        """Server, model, prompt file (its hash) and everything of the request that the answer depends on. Never the key."""
        return {
            "kind": "judge",
            "format": FORMAT,
            "mode": self.mode,
            "url": self.client.url,
            "model": self.model,
            "rubric": self.rubric.name,
            "rubric_sha256": self.rubric.digest,
            "asks_log_probs": self.asks_log_probs,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "extra": self.extra,
        }

    @abstractmethod
    def message(self, call: Call) -> str:
        """What the judge is told, word for word; the same call gives the same message."""

    @abstractmethod
    def _read(self, reply: Reply) -> tuple[float | None, str | None]:
        """Probability and reason that the ledger keeps."""

    def send(self, call: Call) -> Answer:
        """Ask once. An unreadable reply is an abstention with its reason, kept in the ledger: asking again
        would be paying for a coin."""
        message = self.message(call)
        try:
            reply = read_reply(self.client.post(self._body(message)), message, self.client.redact_error)
        except Retry as again:
            again.cost = self.prices.of(*again.tokens)
            raise
        # Before anything is cut to length: a piece of a key would no longer be known as one.
        reply = replace(
            reply,
            text=self.redact(reply.text),
            refusal=None if reply.refusal is None else self.client.redact_error(reply.refusal),
        )
        refused = None, f"the judge refused: {(reply.refusal or '')[:120]}"
        probability, reason = self._read(reply) if reply.refusal is None else refused
        return Answer(
            probability,
            reason,
            reply.text or reply.refusal or "",
            reply.tokens_in,
            reply.tokens_out,
            self.prices.of(reply.tokens_in, reply.tokens_out),
        )

    def redact(self, text: str) -> str:
        """Without the key."""
        return self.client.redact(text)

    def close(self) -> None:
        """Close the connections to the server."""
        self.client.close()

    def _body(self, message: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stream": False,
        }
        if self.asks_log_probs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOG_PROBS}
        return {name: value for name, value in {**body, **self.extra}.items() if value is not None}


class Judge(_ServedJudge):
    """Asks which of two responses is better, in the order in which it is given them.

    p = P(A) / (P(A) + P(B)) at the token of the final verdict where the server gives log-probabilities and
    `soft` is set, else 1, 0 or, for a stated tie, .5. A judge has a bias for a place: wrap it in BothOrders.
    """

    mode = "pairwise"

    def __init__(self, url: str, model: str, *, soft: bool = True, **options: Any) -> None:
        """soft: ask for log-probabilities. The other options are those of both kinds of judge."""
        self.asks_log_probs = soft
        super().__init__(url, model, **options)

    def message(self, call: Call) -> str:
        """What the judge is told about a pair."""
        return self.rubric.pair(call.prompt, call.first, call.second)

    def _read(self, reply: Reply) -> tuple[float | None, str | None]:
        reading: Reading = read_verdict(reply.text, cut=reply.cut)
        soft = soft_verdict(reply, reading) if self.asks_log_probs else None
        return reading.value if soft is None else soft, reading.reason


class ScoreJudge(_ServedJudge):
    """Asks for a score s from 1 to 10 of each response by itself; p = sigmoid((s_first - s_second) / score_temperature).

    A response is asked about once, whatever it is paired with. In the ledger a call has an empty second text,
    and its probability is (s - 1) / 9. score_temperature: the difference of scores that gives odds of e to 1.
    """

    mode = "single"
    symmetric = True
    asks_log_probs = False

    def __init__(self, url: str, model: str, *, score_temperature: float = 1.0, **options: Any) -> None:
        """The other options are those of both kinds of judge."""
        if not score_temperature > 0:
            raise ConfigError(
                f"The score_temperature of a judge must be above 0; it is {score_temperature!r}."
            )
        self.score_temperature = score_temperature
        super().__init__(url, model, **options)

    def message(self, call: Call) -> str:
        """What the judge is told about a response."""
        return self.rubric.one(call.prompt, call.first)

    def own_scores(self) -> JudgedScores:
        """Its scores, None where it abstains."""
        return JudgedScores(self)

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Bradley-Terry on the scores; an abstention where either response got none."""
        told = self.told([(pair.prompt, text) for pair in pairs for text in (pair.first, pair.second)])
        return [
            _bradley_terry(first, second, self.score_temperature)
            for first, second in zip(told[::2], told[1::2], strict=True)
        ]

    def scores(self, responses: Sequence[tuple[Prompt, str]]) -> list[tuple[float | None, str | None]]:
        """The score of each (prompt, response), 1 to 10, or None with the reason."""
        return [(score_of(one), one.reason) for one in self.told(responses)]

    def told(self, responses: Sequence[tuple[Prompt, str]]) -> list[Preference]:
        """Each response's score as the ledger keeps it (score_of), or the reason why there is none."""
        return super().compare([Pair(prompt, text, "") for prompt, text in responses])

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        """The score of the last message of each conversation, 1 to 10, None where the judge abstained: a scorer for
        `sail eval --questions`. OracleError where calls failed, because an evaluation would keep None as a verdict."""
        empty = [place for place, talk in enumerate(conversations) if len(talk) < 2]
        if empty:
            raise OracleError(
                f"Oracle {self.name} scores the last message of a conversation, and {len(empty)} of "
                f"{len(conversations)} have fewer than two messages, such as number {empty[0]}. Give it "
                "conversations that end with an answer."
            )
        told = self.told([(list(talk[:-1]), talk[-1]["content"]) for talk in conversations])
        failed = [one for one in told if one.passing]
        if failed:
            raise OracleError(
                f"Oracle {self.name} has no answer to {len(failed)} of {len(told)} conversations, the first: "
                f"{failed[0].reason}. See that the judge can be reached, then ask again."
            )
        return [score_of(one) for one in told]

    def _read(self, reply: Reply) -> tuple[float | None, str | None]:
        reading = read_score(reply.text, cut=reply.cut)
        return None if reading.value is None else to_unit(reading.value), reading.reason


def _bradley_terry(first: Preference, second: Preference, temperature: float) -> Preference:
    scores = score_of(first), score_of(second)
    if scores[0] is None or scores[1] is None:
        silent = [one for one in (("first", first), ("second", second)) if one[1].first_wins is None]
        reasons = "; ".join(f"the {which} response has no score: {one.reason}" for which, one in silent)
        return Preference(None, reasons, passing=any(one.passing for _, one in silent))
    return bradley_terry(scores[0], scores[1], temperature)
