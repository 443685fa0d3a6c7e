"""Connections to a server, with a deadline for each call that holds whatever the server does.

The work is done on an event loop in a thread of its own, because only there can a call be ended wherever it
hangs: looking up the name, connecting, in headers that dribble in, or in a body that never ends. `send` itself
blocks and may be called from many threads; connections are kept and used again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import os
import ssl
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from sail.errors import OracleError
from sail.oracles.calls import Retry

CHUNK = 65_536
GRACE = 30.0
"""Seconds after its deadline at which a call is given up although the loop has not ended it: the loop itself hangs."""


class Engine:
    """An event loop in a thread, and the connections on it."""

    def __init__(self, timeout: float, connections: int, largest: int) -> None:
        """timeout: seconds for a whole call. connections: at most so many at once. largest: bytes of a reply."""
        import aiohttp

        self.process, self.timeout, self.largest = os.getpid(), timeout, largest
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sail-judge", daemon=True)
        self._thread.start()

        async def session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=connections),
                timeout=aiohttp.ClientTimeout(total=timeout, connect=None, sock_connect=None, sock_read=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "sail"},
            )

        self._session = asyncio.run_coroutine_threadsafe(session(), self._loop).result()

    def send(self, url: str, data: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of the reply; Retry on anything that keeps it from coming whole and in time."""
        import aiohttp

        where = urlsplit(url).netloc
        try:
            return asyncio.run_coroutine_threadsafe(self._send(url, data, headers), self._loop).result(
                self.timeout + GRACE
            )
        except TimeoutError:
            raise Retry(f"no complete answer within {self.timeout:g} seconds") from None
        except concurrent.futures.CancelledError:
            raise Retry("the client was closed during the call") from None
        except aiohttp.ClientConnectorCertificateError:
            raise OracleError(
                f"The certificate of the judge at {where} cannot be trusted. Check oracle.url, or the "
                f"certificates of this machine."
            ) from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientProxyConnectionError) as error:
            raise Retry(
                f"cannot connect to {where}: {error.os_error.strerror or type(error.os_error).__name__}"
            ) from None
        except aiohttp.InvalidURL:
            raise OracleError(f"oracle.url {where} is not an address that can be called.") from None
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            # Messages of these may hold what was sent or received, so only the kind is told.
            raise Retry(f"the connection to {where} broke ({type(error).__name__})") from None

    def close(self) -> None:
        """End the loop; nothing is waited for when called from the loop's own thread or after a fork."""
        if self._loop.is_closed() or self.process != os.getpid() or not self._thread.is_alive():
            return

        async def end() -> None:
            # Whoever still waits is told so; a loop that just stops would let them wait for ever.
            open_calls = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
            for call in open_calls:
                call.cancel()
            await asyncio.gather(*open_calls, return_exceptions=True)
            await self._session.close()
            self._loop.call_soon(self._loop.stop)

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2.0)

    async def _send(
        self, url: str, data: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        async with self._session.post(
            url, data=data, headers=headers, allow_redirects=False, proxy=proxy_of(url)
        ) as response:
            parts, size = [], 0
            async for part in response.content.iter_chunked(CHUNK):
                size += len(part)
                if size > self.largest:
                    response.close()
                    raise Retry(f"the reply is longer than {self.largest:,} bytes")
                parts.append(part)
            return (
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                b"".join(parts),
            )


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for this address; never one for an address on this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost" or host.endswith(".localhost")
    if here or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
