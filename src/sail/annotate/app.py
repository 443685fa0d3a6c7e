"""The page as a web application: one HTML file, one script, one style sheet, and six small questions of that script.

Everything but script and style needs the token of the address: as ?token=, as the cookie that the page then sets, or as a header
of a program. A question must also come from this very page: with a header of its own and as JSON, which no other site's form or
script can send here.
"""

from __future__ import annotations

import json
import math
import secrets
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sail.annotate.agreement import Agreement, agreement
from sail.annotate.items import Item, shown_left
from sail.annotate.store import Annotations
from sail.types import Prompt

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

OWN_HEADER = "x-sail-annotate"
TOKEN_HEADER = "x-sail-token"
LONGEST_BODY = 16_384
LONGEST_NAME = 60
LONGEST_SECONDS = 86_400.0
QUESTION = "Which answer is better?"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_VERDICTS = ("left", "right", "tie", "skip")


class Refused(Exception):
    """A question that is not answered: status and a sentence for whoever asked."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def make_app(labels: Annotations, *, token: str, cookie: str, hosts: tuple[str, ...] | None) -> Starlette:
    """The application over a file of labels.

    hosts: names under which the page may be asked for (against other sites that resolve to this machine); None = any.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    page = Page(labels, token=token, cookie=cookie, hosts=hosts)
    questions = {
        "next": page.next,
        "label": page.label,
        "undo": page.undo,
        "beat": page.beat,
        "leave": page.leave,
        "summary": page.summary,
    }
    routes = [
        Route("/", page.index),
        Route("/page.css", page.asset("page.css", "text/css")),
        Route("/page.js", page.asset("page.js", "text/javascript")),
        *(
            Route(f"/api/{name}", page.answering(question), methods=["POST"])
            for name, question in questions.items()
        ),
    ]
    return Starlette(routes=routes)


class Page:
    """The answers. The file's calls take milliseconds, so they run in the server's own thread, one after the other."""

    def __init__(
        self, labels: Annotations, *, token: str, cookie: str, hosts: tuple[str, ...] | None
    ) -> None:
        self.labels, self.cookie, self.hosts = labels, cookie, hosts
        self._token = token
        self._known: tuple[Any, dict[str, Any]] | None = None

    # ---- who may ask

    async def index(self, request: Request) -> Response:
        """The page, and the cookie by which its script is known from then on."""
        from starlette.responses import HTMLResponse, PlainTextResponse

        try:
            self._check_host(request)
            self._check_token(request, request.query_params.get("token"))
        except Refused as refused:
            return PlainTextResponse(str(refused), refused.status, _HEADERS)
        response = HTMLResponse(_file("page.html"), headers=_HEADERS)
        # Lax: a link in a colleague's mail opens the page, and no other site's request that changes something carries the cookie.
        response.set_cookie(self.cookie, self._token, httponly=True, samesite="lax", path="/")
        return response

    def asset(self, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        """A handler that gives one of the page's own files."""

        async def give(request: Request) -> Response:
            from starlette.responses import Response

            return Response(_file(name), media_type=kind, headers=_HEADERS)

        return give

    def answering(
        self, question: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler that checks who asks, reads the body and gives the answer as JSON."""

        async def answer(request: Request) -> Response:
            try:
                self._check_host(request)
                self._check_token(request, request.headers.get(TOKEN_HEADER))
                self._check_origin(request)
                return _json(question(await _body(request)))
            except Refused as refused:
                return _json({"error": str(refused)}, refused.status)

        return answer

    def _check_token(self, request: Request, given: str | None) -> None:
        for one in (given, request.cookies.get(self.cookie)):
            if one and secrets.compare_digest(one.encode(), self._token.encode()):
                return
        raise Refused(
            403, "This address needs its token. Open the whole link that sail printed when it was started."
        )

    def _check_host(self, request: Request) -> None:
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname
        if self.hosts is not None and name not in self.hosts:
            raise Refused(403, "This page is not served under that name.")

    def _check_origin(self, request: Request) -> None:
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise Refused(403, "This question came from another site.")
        if OWN_HEADER not in request.headers:
            raise Refused(403, f"A question to this page carries the header {OWN_HEADER}.")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(415, "Send the question as application/json.")

    # ---- the questions

    def next(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The pair to label now, in this annotator's own order of left and right, and how far everybody is."""
        return self._state(_name(asked))

    def label(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Commit a label, then as `next`; `noted` says what became of it."""
        name, pair, seen = _name(asked), str(asked.get("pair", "")), asked.get("verdict")
        if seen not in _VERDICTS:
            raise Refused(400, f"verdict must be one of {', '.join(_VERDICTS)}.")
        key = asked.get("key")
        if not isinstance(key, str) or not 8 <= len(key) <= 80:
            raise Refused(400, "key must be a text of 8 to 80 characters, new for every label.")
        left = shown_left(name, pair)
        right = "second" if left == "first" else "first"
        verdict = {"left": left, "right": right}.get(seen, seen)
        noted = self.labels.label(name, pair, verdict, _seconds(asked), key)
        if noted == "unknown":
            raise Refused(404, "There is no such pair.")
        return {**self._state(name), "noted": noted}

    def undo(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Take this annotator's last label back and show its pair again; `noted` says whether there was one."""
        name = _name(asked)
        noted = self.labels.undo(name)
        return {**self._state(name), "noted": noted}

    def beat(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A sign of life of a page that shows a pair: keeps it from others, and says whether it is waited for."""
        name = _name(asked)
        wanted = self.labels.hold(name, str(asked.get("pair", "")))
        return {"wanted": wanted, "progress": self._progress(name)}

    def leave(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The page is gone: its pair may be given to others."""
        self.labels.leave(_name(asked))
        return {}

    def summary(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Who labelled how much, and how far they agree."""
        change = self.labels.last_change()
        if self._known is None or self._known[0] != change:
            self._known = (change, _summary(self.labels))
        return self._known[1]

    def _state(self, name: str) -> dict[str, Any]:
        item = self.labels.next(name)
        state: dict[str, Any] = {
            "progress": self._progress(name),
            "question": self.labels.fact("question") or QUESTION,
            "source": self.labels.fact("source"),
            "training": self.labels.fact("kind") == "training",
        }
        if item is not None:
            state["pair"] = _shown(item, name)
        return state

    def _progress(self, name: str) -> dict[str, Any]:
        return dict(self.labels.progress(name).__dict__)


def _shown(item: Item, name: str) -> dict[str, Any]:
    texts = (item.first, item.second)
    left, right = texts if shown_left(name, item.hash) == "first" else texts[::-1]
    return {"id": item.hash, "prompt": _messages(item.prompt), "left": left, "right": right}


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "", "content": prompt}]
    return [
        {"role": str(message.get("role", "")), "content": str(message.get("content", ""))}
        for message in prompt
    ]


def _summary(labels: Annotations) -> dict[str, Any]:
    paces: dict[str, list[float]] = defaultdict(list)
    for label in labels.labels():
        paces[label.annotator].append(label.seconds)
    people = [
        {"name": name, "labels": len(seconds), "median_seconds": statistics.median(seconds)}
        for name, seconds in sorted(paces.items())
    ]
    return {"people": people, "agreement": dict(agreement_of(labels).__dict__)}


def agreement_of(labels: Annotations) -> Agreement:
    """Krippendorff's alpha of the standing labels, ordinal (first, tie, second); skips are missing values."""
    given: dict[str, list[str]] = defaultdict(list)
    for label in labels.labels():
        given[label.pair].append(label.verdict)
    items = labels.items()
    given = {pair: verdicts for pair, verdicts in given.items() if pair in items}
    return agreement(given, {pair: json.dumps(items[pair].prompt) for pair in given})


def _json(answer: dict[str, Any], status: int = 200) -> Response:
    from starlette.responses import Response

    # In ASCII: a broken answer may hold half a surrogate pair, which has no UTF-8.
    return Response(json.dumps(answer), status, _HEADERS, "application/json")


async def _body(request: Request) -> dict[str, Any]:
    whole = b""
    async for part in request.stream():
        whole += part
        if len(whole) > LONGEST_BODY:
            raise Refused(413, "That is too long for a question to this page.")
    try:
        asked = json.loads(whole)
    except (ValueError, RecursionError):
        raise Refused(400, "The question is not JSON.") from None
    if not isinstance(asked, dict):
        raise Refused(400, "The question must be a JSON object.")
    return asked


def _name(asked: dict[str, Any]) -> str:
    given = asked.get("name")
    name = " ".join(given.split()) if isinstance(given, str) else ""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise Refused(400, f"name must be a text of 1 to {LONGEST_NAME} characters.")
    return name


def _seconds(asked: dict[str, Any]) -> float:
    value = asked.get("seconds")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(400, "seconds must be a number.")
    return min(max(float(value), 0.0), LONGEST_SECONDS)


def _file(name: str) -> str:
    return (files("sail.annotate") / "page" / name).read_text(encoding="utf-8")
