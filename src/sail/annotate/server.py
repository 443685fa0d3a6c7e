"""The page on a port of this machine, in a thread of its own."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sail.annotate.app import LOOPBACK, make_app
from sail.annotate.store import Annotations
from sail.errors import ConfigError, MissingExtraError, SailError

PORT = 8765
TOKEN_VARIABLE = "SAIL_ANNOTATE_TOKEN"
SHORTEST_TOKEN = 16


def require_web_server() -> None:
    """MissingExtraError, with what to install, where the web server is missing; nothing is imported."""
    if not all(sys.modules.get(name) or _installed(name) for name in ("uvicorn", "starlette")):
        raise MissingExtraError(
            'The page for people needs a small web server. Install it: pip install "sail-align[annotate]"'
        )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # what a module that is there without a spec, or set to None, gives
        return False


def kept_token(labels: Path) -> str:
    """The random token of a file of labels, made when it is first asked for: a page that is open while its server is started
    anew keeps working. It lies beside the labels, for their owner's eyes only; delete the file to have a new one made."""
    path = labels.with_suffix(".token")
    for _ in range(2):
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(made := secrets.token_urlsafe(24))
            return made
        except FileExistsError:
            if kept := _owned_token(path):
                return kept
            path.unlink(missing_ok=True)
        except OSError:
            break
    return secrets.token_urlsafe(24)  # nothing can be kept here: links then hold until the page is stopped


def _owned_token(path: Path) -> str:
    """What the file holds; "" where others could have read or written it, or where it is cut off."""
    for _ in range(20):
        try:
            about, kept = path.lstat(), path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""
        if not stat.S_ISREG(about.st_mode) or about.st_mode & 0o077 or about.st_uid != os.getuid():
            return ""
        if len(kept) >= SHORTEST_TOKEN:
            return kept
        time.sleep(0.05)  # another process has made the file this very moment
    return ""


class PageServer:
    """Serves the labels of a file until `stop`, or until the process ends. Holds a connection of its own to the file."""

    def __init__(self, path: Path, *, host: str = "127.0.0.1", port: int = PORT) -> None:
        """port: 8765, the default, gives way to a free one where it is taken; any other must be free. The token is random, made
        once and kept beside the labels, unless the environment gives one."""
        self.path, self.host, self._wanted = path, host, port
        self._given = os.environ.get(TOKEN_VARIABLE)
        if self._given is not None and len(self._given) < SHORTEST_TOKEN:
            raise ConfigError(
                f"The token in {TOKEN_VARIABLE} is too short to be safe. Give it at least {SHORTEST_TOKEN} characters, or "
                "unset it: then a random one is made."
            )
        self._token = self._given or ""
        self.port = 0
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._labels: Annotations | None = None

    def start(self) -> PageServer:
        """Open the port and answer. MissingExtraError without the web server, SailError if the port cannot be had."""
        require_web_server()
        import uvicorn

        listening = self._listen()
        self.port = listening.getsockname()[1]
        self._labels = Annotations(self.path)
        self._token = self._token or kept_token(self.path)
        hosts = (*LOOPBACK, self.host) if self.is_private else None
        # Cookies know no ports: two runs on one machine must not take each other's.
        app = make_app(self._labels, token=self._token, cookie=f"sail_annotate_{self.port}", hosts=hosts)
        # No access log: the address in it holds the token.
        settings = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, timeout_keep_alive=30
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, args=([listening],), name="sail-annotate", daemon=True
        )
        self._thread.start()
        end = time.monotonic() + 30
        while not self._server.started:
            if time.monotonic() > end or not self._thread.is_alive():
                raise SailError(
                    f"The page could not be served on port {self.port}. Try another one with --port."
                )
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Close the port; what was committed is in the file."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = self._server.force_exit = True
            self._thread.join(timeout=10)
        if self._labels is not None:
            self._labels.close()
            self._labels = None

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    @property
    def address(self) -> str:
        """Where it is, without the token."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}"

    @property
    def link(self) -> str:
        """The link to open. A token that the user chose is not repeated."""
        return f"{self.address}/?token={'$' + TOKEN_VARIABLE if self._given else self._token}"

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        ports = [PORT, 0] if self._wanted == PORT else [self._wanted]
        for port in ports:
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((self.host, port))
            except (OSError, OverflowError) as error:
                listening.close()
                reason = error
                continue
            return listening
        raise SailError(
            f"The page cannot be served at {self.host}, port {ports[0]}: {reason}. Choose another port (0 takes a free one) "
            "or host."
        )
