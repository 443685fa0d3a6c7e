"""One POST to an OpenAI-compatible server: what is sent, and what each answer other than a good one means."""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from sail.errors import ConfigError, MissingExtraError, OracleError
from sail.oracles.calls import Retry
from sail.oracles.judge.engine import Engine

RETRIED = frozenset({408, 409, 425, 429})
NOT_RETRIED_5XX = frozenset({501, 505})
HOPELESS = {
    401: "the key was refused. Check the environment variable that oracle.api_key_env names",
    402: "the account has no credit. Pay, or use another server",
    403: "this key may not use this model or server. Check oracle.model and the key's rights",
    404: "there is no such address or model. Check oracle.url (it usually ends with /v1) and oracle.model",
    405: "this address takes no such request. Check oracle.url (it usually ends with /v1)",
    407: "a proxy on the way wants credentials. Check the proxy settings of the environment",
    410: "this model or address is gone. Check oracle.url and oracle.model",
    501: "the server cannot do this. Check oracle.url",
    505: "the server does not speak HTTP/1.1. Check oracle.url",
}
EXCERPT = 300
SECRET_WINDOW = 8
_MASKED = re.compile(r"([\w.~+/=-]*)\*{3,}([\w.~+/=-]*)")
_SECRET_QUERY = re.compile(r"key|token|secret|passw|signature|\bsig\b|code", re.IGNORECASE)


class Client:
    """The chat completions of one server: `post(body)` sends a request and returns the reply's JSON object.

    url: the base, such as http://127.0.0.1:8000/v1. api_key_env: the name of the environment variable with the
    key, or None; the key is read for each call and kept nowhere. timeout: seconds for a whole call, name
    look-up to last byte. largest: bytes of a reply.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 60.0,
        connections: int = 8,
        largest: int = 2_000_000,
    ) -> None:
        if not timeout > 0 or not math.isfinite(timeout):
            raise ConfigError(f"The timeout of a judge is in seconds and above 0; it is {timeout!r}.")
        require_aiohttp()
        self.url = checked_url(url)
        self.api_key_env, self.timeout, self.connections, self.largest = (
            api_key_env,
            timeout,
            connections,
            largest,
        )
        self._key()
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        return f"Client({self.url!r}, api_key_env={self.api_key_env!r})"

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to {url}/chat/completions. Raises Retry for what may pass or concerns this request only,
        OracleError for what no repetition mends; neither ever shows the key."""
        data = json.dumps(body, ensure_ascii=True).encode("ascii")
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        key = self._key()
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        status, told, reply = self._running().send(f"{self.url}/chat/completions", data, headers)
        if status != 200:
            self._refuse(status, told, reply)
        try:
            found = json.loads(reply)
        except (ValueError, RecursionError):
            raise Retry(f"the reply is not JSON: {_excerpt(reply, self.redact_error)}") from None
        if not isinstance(found, dict):
            raise Retry(f"the reply is not a JSON object: {_excerpt(reply, self.redact_error)}")
        return found

    def redact(self, text: str) -> str:
        """The text without the key or any eight characters in a row of it."""
        key = os.environ.get(self.api_key_env or "", "").strip()
        if len(key) < 4:
            return text
        for form in {key, quote(key, safe="")}:
            text = text.replace(form, "[key]")
        pieces = {key[at : at + SECRET_WINDOW] for at in range(len(key) - SECRET_WINDOW + 1)}
        return _blank_out(text, [piece for piece in pieces if piece in text])

    def redact_error(self, text: str) -> str:
        """The same for what a server says went wrong, which may show the key's ends around asterisks: sk-ab***yz. In a judge's
        reply asterisks are Markdown."""
        key = os.environ.get(self.api_key_env or "", "").strip()

        def masked(found: re.Match[str]) -> str:
            head, tail = found.group(1), found.group(2).rstrip(".")
            shows = (head and key.startswith(head)) or (tail and key.endswith(tail))
            return "[key]" if shows else found.group()

        text = _MASKED.sub(masked, text) if len(key) >= 4 else text
        return self.redact(text)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _key(self) -> str | None:
        """The key, or None where none is wanted. Checked at the start, so that a run does not find out at its first call."""
        if self.api_key_env is None:
            return None
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ConfigError(
                "oracle.api_key_env must be the name of an environment variable, not the key itself: for example OPENAI_API_KEY."
            )
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise OracleError(
                f"The environment variable {self.api_key_env}, which should hold the judge's key, is not set. Set it (export "
                f"{self.api_key_env}=...), or remove oracle.api_key_env if the server wants no key."
            )
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise OracleError(
                f"The key in the environment variable {self.api_key_env} holds a space, a line break or a character that is not "
                "ASCII. Set it again."
            )
        return key

    def _running(self) -> Engine:
        """The engine of this process: a fork takes no thread along."""
        with self._lock:
            if self._engine is None or self._engine.process != os.getpid():
                self._engine = Engine(self.timeout, self.connections, self.largest)
                weakref.finalize(self, self._engine.close)
            return self._engine

    def _refuse(self, status: int, headers: Mapping[str, str], reply: bytes) -> None:
        """Raise what a status other than 200 means."""
        what = f"HTTP {status}: {_server_message(reply, self.redact_error)}"
        if 300 <= status < 400:
            where = self.redact_error(
                urlsplit(headers.get("location", ""))._replace(query="", fragment="").geturl()
            )
            raise OracleError(
                f"The judge at {self.url} redirects to {where or 'nowhere'}, and a request with a key is not "
                f"sent on. Set oracle.url to "
                "the final address."
            )
        if status == 429 and b"insufficient_quota" in reply:
            raise OracleError(
                f"The judge at {self.url} answers {what} The account has no credit: {HOPELESS[402]}."
            )
        if status in RETRIED or (status >= 500 and status not in NOT_RETRIED_5XX):
            raise Retry(what, after=retry_after(headers))
        if status in HOPELESS:
            raise OracleError(f"The judge at {self.url} answers {what} This means that {HOPELESS[status]}.")
        # This request was refused, the next may not be: no repetition, and no end of the run unless it goes on like this.
        raise Retry(f"the server refused the request, {what}", after=math.inf)


def require_aiohttp() -> None:
    """MissingExtraError, saying what to install, if the HTTP library is missing."""
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            'A judge needs an HTTP library. Install it: pip install "sail-align[judge]"'
        ) from error


def checked_url(url: str) -> str:
    """The base address without a final slash or /chat/completions; ConfigError if it is none or holds a secret."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"oracle.url {url!r} is not an address: {error}.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            "oracle.url must begin with http:// or https:// and name a host, for example http://127.0.0.1:8000/v1."
        )
    if (
        parts.username
        or parts.password
        or any(_SECRET_QUERY.search(name) for name, _ in parse_qsl(parts.query))
    ):
        raise ConfigError(
            f"oracle.url for {host} holds a secret, and addresses are written into the run folder. Put it into "
            f"an environment variable and "
            "name that in oracle.api_key_env."
        )
    if parts.query or parts.fragment:
        raise ConfigError(
            f"oracle.url for {host} must have no part after ? or #; it is the base of the address only."
        )
    return url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks to wait (a number of seconds or an HTTP date), or None. `now`:
    seconds since the epoch; by default the server's own clock, if it told it, so that a wrong clock here does no harm."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    until = _date(value)
    if until is None:
        return None
    if now is None:
        now = _date(headers.get("date", "")) or time.time()
    return max(0.0, until - now)


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _blank_out(text: str, pieces: list[str]) -> str:
    """Every stretch that is covered by one of the pieces becomes [key]."""
    covered = bytearray(len(text))
    for piece in pieces:
        at = text.find(piece)
        while at >= 0:
            covered[at : at + len(piece)] = b"\1" * len(piece)
            at = text.find(piece, at + 1)
    return re.sub(
        "\1+", "[key]", "".join("\1" if hit else one for one, hit in zip(text, covered, strict=True))
    )


def _server_message(reply: bytes, redact: Callable[[str], str]) -> str:
    """What the server says went wrong, redacted and then cut, on one line, ending with a full stop."""
    try:
        found = json.loads(reply)
        error = found.get("error", found) if isinstance(found, dict) else found
        text = error.get("message", "") if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        text = ""
    text = redact(" ".join(str(text).split()))[:EXCERPT] or _excerpt(reply, redact)
    return text if text.endswith(".") else text + "."


def _excerpt(reply: bytes, redact: Callable[[str], str]) -> str:
    """The beginning of a reply, without markup, control characters and secrets."""
    text = re.sub(
        r"<(script|style)\b.*?</\1>|<[^<>]*>",
        " ",
        reply[:20_000].decode("utf-8", "replace"),
        flags=re.S | re.I,
    )
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return repr(redact(text)[:EXCERPT]) if text else "an empty body"
