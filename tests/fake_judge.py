"""A judge's server with real sockets on loopback that misbehaves on demand and counts what it was asked and what it answered.

    with FakeJudge(plan=lambda question, attempt: "500" if attempt == 0 else "ok") as server:
        Judge(server.url, "fake").compare(pairs)
        server.asked, server.paid       # per question, a hash of the message

What it is asked is read as a careful reader would: the mark of the fence from the message, the pieces between
lines that carry it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FENCE = re.compile(r"^<<< ([\w ]+) ([0-9a-f]{16})\n(.*?)\n>>> \1 \2$", re.DOTALL | re.MULTILINE)
HTML = b"<html><head><title>502</title><style>p {}</style></head><body><h1>Bad Gateway</h1></body></html>"


def pieces(message: str) -> dict[str, str]:
    """The judged texts by the name of their piece, without the bars."""
    return {
        name: "\n".join(line.removeprefix("| ") for line in text.split("\n"))
        for name, _, text in FENCE.findall(message)
    }


def outside(message: str) -> str:
    """What is left of a message without its pieces."""
    return FENCE.sub("", message)


def merit(text: str) -> tuple[int, int]:
    """The rule of the fake judge: more w3, then fewer words."""
    return text.split().count("w3"), -len(text.split())


def verdict(message: str) -> str:
    """[[A]], [[B]] or [[C]] by merit; a score by the number of w3 for a message about one response."""
    found = pieces(message)
    if "response" in found:
        return f"I count.\n\n[[{min(10, 1 + merit(found['response'])[0])}]]"
    first, second = merit(found["response A"]), merit(found["response B"])
    return "I count.\n\n" + ("[[C]]" if first == second else "[[A]]" if first > second else "[[B]]")


def completion(text: str | None, **changes: Any) -> dict[str, Any]:
    """A chat completion that says `text`; `changes` go to its choice."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **changes}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


class FakeJudge:
    """plan(question, attempt) names what happens to a request: "ok", a status such as "500", or a method of _Handler; the
    part after a colon is its argument. judge(message) is the text of a good reply, or a whole completion. latency: seconds of
    every reply. `asked` and `paid` count requests and good replies per question; what ends early is not paid."""

    def __init__(
        self,
        plan: Callable[[str, int], str] = lambda question, attempt: "ok",
        judge: Callable[[str], str | dict[str, Any]] = verdict,
        *,
        latency: float = 0.0,
    ) -> None:
        self.plan, self.judge, self.latency = plan, judge, latency
        self.asked: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.connections = self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.fake = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FakeJudge:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    fake: FakeJudge

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news; anything else is a fault of this file."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.server.fake.lock:
            self.server.fake.connections += 1

    def do_POST(self) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = body["messages"][-1]["content"]
        question = hashlib.sha256(message.encode()).hexdigest()
        with fake.lock:
            attempt = fake.asked[question]
            fake.asked[question] += 1
            fake.bodies.append(body)
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
        try:
            if fake.latency:
                fake.closing.wait(fake.latency)
            what, _, argument = fake.plan(question, attempt).partition(":")
            if what == "ok":
                with fake.lock:
                    fake.paid[question] += 1
                said = fake.judge(message)
                self._json(said if isinstance(said, dict) else completion(said))
            elif what.isdigit():
                self._json({"error": {"message": argument or "it is a test", "code": what}}, int(what))
            else:
                getattr(self, what)(message, argument)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with fake.lock:
                fake.at_once -= 1

    # ---- what may happen

    def limited(self, message: str, argument: str) -> None:
        """429 with Retry-After as given."""
        self._reply(b'{"error": {"message": "slow down"}}', status=429, **{"Retry-After": argument})

    def limited_until(self, message: str, argument: str) -> None:
        """429 with Retry-After as a date so many seconds away, by a clock that is an hour slow."""
        now = time.time() - 3600
        dates = {
            "Date": formatdate(now, usegmt=True),
            "Retry-After": formatdate(now + float(argument), usegmt=True),
        }
        self.send_response_only(429)
        self._end(b"{}", dates)

    def hang(self, message: str, argument: str) -> None:
        """Nothing ever comes."""
        self.server.fake.closing.wait(60)
        self.close_connection = True

    def dribble(self, message: str, argument: str) -> None:
        """A chunked body of which a byte comes now and then, without end."""
        self.send_response_only(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._drip(b"1\r\n \r\n")

    def dribble_headers(self, message: str, argument: str) -> None:
        """Headers without end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Never: ")
        self._drip(b"x")

    def slow(self, message: str, argument: str) -> None:
        """A good reply whose body takes the given seconds."""
        body = json.dumps(completion(str(self.server.fake.judge(message)))).encode()
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with self.server.fake.lock:
            self.server.fake.paid[hashlib.sha256(message.encode()).hexdigest()] += 1
        for place in range(10):
            self.wfile.write(body[place * len(body) // 10 : (place + 1) * len(body) // 10])
            self.wfile.flush()
            time.sleep(float(argument) / 10)

    def cut_stream(self, message: str, argument: str) -> None:
        """The connection ends in the middle of the body."""
        body = json.dumps(completion(str(self.server.fake.judge(message)))).encode()
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def reset(self, message: str, argument: str) -> None:
        """The connection is torn down without a word."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def garbage(self, message: str, argument: str) -> None:
        """Bytes that are no JSON."""
        self._reply(bytes(range(256)) * 4)

    def html(self, message: str, argument: str) -> None:
        """A gateway's error page, with the given status."""
        self._reply(HTML, status=int(argument), kind="text/html")

    def wrong_type(self, message: str, argument: str) -> None:
        """A good reply that calls itself HTML."""
        self._reply(json.dumps(completion(str(self.server.fake.judge(message)))).encode(), kind="text/html")

    def json(self, message: str, argument: str) -> None:
        """The given JSON."""
        self._reply(argument.encode())

    def huge(self, message: str, argument: str) -> None:
        """A body of 50 MB."""
        self.send_response_only(200)
        self.send_header("Content-Length", str(50_000_000))
        self.end_headers()
        for _ in range(500):
            self.wfile.write(b"x" * 100_000)

    def redirect(self, message: str, argument: str) -> None:
        """To another address."""
        self._reply(b"", status=307, Location=argument)

    # ---- helpers

    def _drip(self, part: bytes) -> None:
        while not self.server.fake.closing.wait(0.02):
            self.wfile.write(part)
            self.wfile.flush()
        self.close_connection = True

    def _json(self, value: Any, status: int = 200) -> None:
        self._reply(json.dumps(value).encode(), status=status)

    def _reply(
        self, body: bytes, *, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        self.send_response_only(status)
        self._end(body, {"Content-Type": kind, **headers})

    def _end(self, body: bytes, headers: dict[str, str]) -> None:
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
