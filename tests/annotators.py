"""A person as a program: opens the page's link over HTTP, keeps its cookie, and labels by a rule."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

Rule = Callable[[Any, str, str], str]
"""(prompt messages, left, right) -> left | right | tie | skip."""


def hear_ctrl_c() -> None:
    """For Popen(preexec_fn=...): a shell lets what it runs in the background ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def likes_w3(prompt: Any, left: str, right: str) -> str:
    """More often the word w3, then brevity, else a tie: a verdict on texts alone, whatever stands on the left."""
    scores = [(text.split().count("w3"), -len(text.split())) for text in (left, right)]
    return "tie" if scores[0] == scores[1] else "left" if scores[0] > scores[1] else "right"


class Person:
    """One annotator with one connection."""

    def __init__(self, link: str, name: str) -> None:
        parts = urlsplit(link)
        self.name = name
        self.wire = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=20)
        self.wire.request("GET", f"/?{parts.query}")
        reply = self.wire.getresponse()
        reply.read()
        assert reply.status == 200, reply.status
        self.cookie = reply.headers["set-cookie"].partition(";")[0]

    def ask(self, what: str, **body: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "X-Sail-Annotate": "1", "Cookie": self.cookie}
        self.wire.request("POST", f"/api/{what}", json.dumps({"name": self.name, **body}), headers)
        reply = self.wire.getresponse()
        answer = json.loads(reply.read())
        assert reply.status == 200, answer
        return answer

    def next(self) -> dict[str, Any]:
        return self.ask("next")

    def label(self, pair: dict[str, Any], verdict: str, **more: Any) -> dict[str, Any]:
        body = {"pair": pair["id"], "verdict": verdict, "seconds": 1.0, "key": uuid.uuid4().hex, **more}
        return self.ask("label", **body)


class Worker(threading.Thread):
    """Labels whatever is asked until it is told to stop, or has given `most` labels."""

    def __init__(self, link: str, name: str, rule: Rule = likes_w3, *, most: int | None = None) -> None:
        super().__init__(daemon=True)
        self.person, self.rule, self.most = Person(link, name), rule, most
        self.given: list[tuple[str, str]] = []
        self.error: BaseException | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            state = self.person.next()
            while not self._ended.is_set() and (self.most is None or len(self.given) < self.most):
                pair = state.get("pair")
                if pair is None:
                    time.sleep(0.01)
                    state = self.person.next()
                    continue
                verdict = self.rule(pair["prompt"], pair["left"], pair["right"])
                state = self.person.label(pair, verdict)
                self.given.append((pair["id"], verdict))
            if self.most is not None:
                self.person.ask("leave")  # what a page does when it is closed
        except (OSError, http.client.HTTPException) as error:
            # The page went away with the run that served it.
            self.error = error

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=10)
