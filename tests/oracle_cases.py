"""Every oracle and every wrapper, over one small world, for the contract battery (tests/unit/test_oracle_contract.py).

A response is "worth N"; more is better. Its prompt may be "silent ..." (the oracle abstains, where it can) or "broken ..." (the
oracle fails for that row, where it can). A new kind of oracle is one more function here, in CASES.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sail.oracles import Oracle, PreferenceFunction, RewardFunction
from sail.oracles.calls import Answer, Call, CallOracle, Patience, Retry
from sail.oracles.ledger import Ledger
from sail.oracles.wrappers import BothOrders, Budgeted, Committee, Noise, OneOrder, Remember
from sail.types import Message, Pair, Prompt

ONCE = Patience(attempts=1, first_wait=0.001)


@dataclass(frozen=True)
class Case:
    """A way to make an oracle in an empty folder, and which of the odd rows it knows."""

    make: Callable[[Path], Any]
    """A context manager of the oracle."""
    silent: bool = True
    broken: bool = True
    exact: bool = True
    """Whether the same pair gets the same bits beside other pairs: what multiplies matrices does not promise that."""


def text_of(prompt: Prompt) -> str:
    """A prompt's words: those of its last message, if it is a conversation."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def worth(text: str) -> int:
    """What a response is worth."""
    return int(re.findall(r"worth (\d+)", text)[-1])


def pairs(count: int) -> list[Pair]:
    """Different pairs, text and chat prompts in turn; every third one is won by its second response, some are near."""
    made = []
    for number in range(count):
        prompt: str | list[Message] = f"question {number}"
        if number % 2:
            prompt = [{"role": "user", "content": f"question {number}"}]
        texts = (f"worth {10 + number}", f"worth {9 + number - number % 4}")
        made.append(Pair(prompt, *texts) if number % 3 else Pair(prompt, *reversed(texts)))
    return made


# --- The kinds ------------------------------------------------------------------------------------------------


def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
    if any(text_of(prompt).startswith("broken") for prompt in prompts):
        raise ValueError("a broken row")
    return [worth(text) / 3 for text in responses]


def prefers(prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[float | None]:
    reward(prompts, first)
    margins = [worth(one) - worth(two) for one, two in zip(first, second, strict=True)]
    silent = [text_of(prompt).startswith("silent") for prompt in prompts]
    return [None if mute else 0.7 if m > 0 else 0.2 for m, mute in zip(margins, silent, strict=True)]


class PaidCalls(CallOracle):
    """Paid calls without a network, with a bias for the first place."""

    def send(self, call: Call) -> Answer:
        if text_of(call.prompt).startswith("broken"):
            raise Retry("HTTP 500")
        if text_of(call.prompt).startswith("silent"):
            return Answer(None, "unreadable", raw="hm")
        return Answer(0.9 if worth(call.first) > worth(call.second) else 0.3, raw="[[A]]", tokens_in=9)


@contextmanager
def plain(oracle: Oracle) -> Iterator[Oracle]:
    yield oracle


@contextmanager
def with_ledger(folder: Path, make: Callable[[Ledger], Oracle]) -> Iterator[Oracle]:
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder / "ledger.sqlite") as ledger:
        yield make(ledger)


def paid(ledger: Ledger | None = None) -> PaidCalls:
    return PaidCalls("paid", ledger=ledger, patience=ONCE, concurrency=4)


def by_prefers() -> Oracle:
    return PreferenceFunction(prefers)


CASES: dict[str, Case] = {
    "reward function": Case(lambda folder: plain(RewardFunction(reward)), silent=False),
    "preference function": Case(lambda folder: plain(by_prefers())),
    "paid calls": Case(lambda folder: with_ledger(folder, paid)),
    "both_orders": Case(lambda folder: plain(BothOrders(by_prefers()))),
    "one_order": Case(lambda folder: plain(OneOrder(by_prefers()))),
    "noise": Case(lambda folder: plain(Noise(by_prefers(), 0.3))),
    "remember": Case(lambda folder: with_ledger(folder, lambda ledger: Remember(by_prefers(), ledger))),
    "budget": Case(
        lambda folder: with_ledger(folder, lambda ledger: Budgeted(Remember(by_prefers(), ledger), 1000))
    ),
    "committee": Case(lambda folder: plain(Committee([by_prefers(), BothOrders(paid()), paid()]))),
    "committee of scores": Case(
        lambda folder: plain(
            Committee([RewardFunction(reward), BothOrders(by_prefers())], abstain_above=0.9)
        ),
        silent=False,
    ),
    "everything": Case(
        lambda folder: with_ledger(
            folder,
            lambda ledger: Noise(Budgeted(Remember(BothOrders(paid(ledger)), ledger), 1000), 0.3, seed=1),
        )
    ),
}


# --- Judge, people, reward model: where they are there ----------------------------------------------------------


def by_worth(question: str) -> str | None:
    """What the scripted judge says: it reads the responses out of the question, and one alone gets a third of its worth. None:
    the server refuses the question."""
    if "broken" in question:
        return None
    if "silent" in question:
        return "I cannot tell."
    found = [int(number) for number in re.findall(r"worth (\d+)", question)]
    return f"[[{f'{found[0] / 3:.1f}' if len(found) == 1 else 'A' if found[0] > found[1] else 'B'}]]"


@contextmanager
def judge_server(say: Callable[[str], str | None]) -> Iterator[str]:
    """The address of an OpenAI-compatible server on loopback that answers with `say(question)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = say(body["messages"][-1]["content"])
            choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 9, "completion_tokens": 2}
            value = {"error": {"message": "no"}} if said is None else {"choices": [choice], "usage": usage}
            text = json.dumps(value).encode()
            self.send_response(400 if said is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def judge(folder: Path) -> Iterator[Oracle]:
    from sail.oracles.judge import Judge

    with judge_server(by_worth) as url:
        oracle = Judge(url, "scripted", patience=ONCE, concurrency=4)
        try:
            yield BothOrders(oracle)
        finally:
            oracle.close()


@contextmanager
def score_judge(folder: Path) -> Iterator[Oracle]:
    from sail.oracles.judge import ScoreJudge

    with (
        judge_server(by_worth) as url,
        closing(ScoreJudge(url, "scripted", patience=ONCE, concurrency=4)) as oracle,
    ):
        yield oracle


@contextmanager
def people(folder: Path) -> Iterator[Oracle]:
    from annotators import Worker

    from sail.oracles.people import People

    def rule(prompt: Any, left: str, right: str) -> str:
        return "skip" if "silent" in str(prompt) else "left" if worth(left) > worth(right) else "right"

    folder.mkdir(parents=True, exist_ok=True)
    oracle = People(folder, port=0, poll=0.01)
    oracle._opened()
    worker = Worker(oracle._server.link, "Ada", rule)
    worker.start()
    try:
        yield oracle
    finally:
        worker.stop()
        oracle.close()


@contextmanager
def reward_model(folder: Path) -> Iterator[Oracle]:
    """A tiny classifier with opinions of its own about this world's words."""
    from tiny_classifiers import chat_tokenizer, save_llama

    from sail.oracles.reward_model import RewardModel

    words = ["worth", "question", *map(str, range(40))]
    yield RewardModel(str(save_llama(folder, chat_tokenizer(words))), batch_size=4)


def _there(module: str) -> bool:
    return find_spec(module) is not None


if _there("sail.oracles.judge"):
    CASES["judge"] = Case(judge)
    CASES["score judge"] = Case(score_judge)
if _there("sail.oracles.people"):
    # Nobody is made to fail by a row: who cannot say skips it.
    CASES["people"] = Case(people, broken=False)
CASES["reward_model"] = Case(reward_model, silent=False, broken=False, exact=False)
