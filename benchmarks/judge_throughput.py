"""How busy a judge is kept: calls over real HTTP to a server that takes 50 ms for each, 32 at once, every call in the ledger.

    python benchmarks/judge_throughput.py [--calls 1600] [--repeats 10]     prints two lines, writes results/judge_throughput.json

The server is a process of its own. Busy is the ideal time over the time taken: calls / 32 * 50 ms, over the wall time of
one `compare`. Intervals are over the repeats (Student's t, 95%). By turns with it, 32 bare threads send the same requests with
http.client and do nothing else: what this machine can do at that moment. Processor time is that of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LATENCY, CONCURRENCY = 0.05, 32
REPLY = {
    "id": "1",
    "object": "chat.completion",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Both.\n\n[[A]]"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 400, "completion_tokens": 8, "total_tokens": 408},
}


# ---- the server


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Every request of a connection, 50 ms each."""
    body = json.dumps(REPLY).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            await asyncio.sleep(LATENCY)
            writer.write(reply)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve() -> None:
    """Say the port, then answer until the process is ended."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ---- the measurement


def bare(port: int, calls: int) -> float:
    """Share of the ideal time that threads reach which only send and receive."""
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "x" * 2500}]}).encode()

    def some(_: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(calls // CONCURRENCY):
            connection.request("POST", "/v1/chat/completions", body)
            json.loads(connection.getresponse().read())

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        wall = time.perf_counter()
        list(pool.map(some, range(CONCURRENCY)))
        return calls / CONCURRENCY * LATENCY / (time.perf_counter() - wall)


def one_repeat(port: int, calls: int, place: Path, repeat: int) -> tuple[float, float, float]:
    """Share of the ideal time, milliseconds of processor time per call, share of bare threads."""
    from sail.oracles.judge import Judge
    from sail.oracles.ledger import Ledger
    from sail.types import Pair

    text = "a response of ordinary length, which says one thing and then another " * 6
    pairs = [
        Pair(f"question {repeat}/{number}?", f"{text}{number}", f"{number} {text}") for number in range(calls)
    ]
    with Ledger(place / f"{repeat}.sqlite") as ledger:
        judge = Judge(f"http://127.0.0.1:{port}/v1", "fake", ledger=ledger, concurrency=CONCURRENCY)
        # Connections are opened beforehand, as they are in a run after its first step.
        judge.compare([Pair(f"warm-up {number}", "a", "b") for number in range(CONCURRENCY)])
        wall, processor = time.perf_counter(), time.process_time()
        given = judge.compare(pairs)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        assert all(one.first_wins == 1.0 for one in given)
        assert ledger.spent().calls == calls + CONCURRENCY
        judge.close()
    return calls / CONCURRENCY * LATENCY / wall, processor / calls * 1e3, bare(port, calls)


def interval(values: list[float]) -> dict[str, float | int]:
    """Mean with Student's 95% interval over the repeats."""
    from scipy.stats import t

    mean, n = statistics.fmean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "n": n}


def shown(found: dict[str, float | int]) -> str:
    """mean [low, high]."""
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=1600, help="calls per repeat")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "judge_throughput.json"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with tempfile.TemporaryDirectory() as place:
            rows = [one_repeat(port, options.calls, Path(place), repeat) for repeat in range(options.repeats)]
    finally:
        server.terminate()
        server.wait()
    busy, processor, floor = (interval([row[column] for row in rows]) for column in range(3))
    result = {
        "busy": busy,
        "bare_threads_busy": floor,
        "busy_over_bare": interval([row[0] / row[2] for row in rows]),
        "processor_ms_per_call": processor,
        "each_busy": [round(row[0], 4) for row in rows],
        "calls_per_repeat": options.calls,
        "concurrency": CONCURRENCY,
        "latency": LATENCY,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(
        f"busy {shown(busy)} of the ideal, bare threads {shown(floor)}; {options.repeats} x {options.calls} calls"
    )
    print(f"processor time per call {shown(processor)} ms; load average {result['load_average'][0]}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
