"""Calls, by wrk: how many were answered, and how long each took."""

import re
import subprocess

from processes import Told

#: The path, and how many connections call it at a time.
KINDS = {
    "http": ("/100", 32),
    "http-one": ("/100", 1),
    "http-1mib": ("/1mib", 8),
    "tcp": ("/100", 32),
}

UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


def micros(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * UNITS[unit]


class Load:
    def __init__(self, kind: str, port: int, seconds: float) -> None:
        path, connections = KINDS[kind]
        url = f"http://127.0.0.1:{port}{path}"
        whole = str(max(1, round(seconds)))
        self.command = ["wrk", "--latency", "-t", "1", "-c", str(connections), "-d", whole, "--timeout", "10s", url]

    def run(self) -> dict:
        done = subprocess.run(self.command, capture_output=True, text=True, check=False)
        text = done.stdout
        counted = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", text)
        shares = {share: micros(time) for share, time in re.findall(r"^ +(50|99)% +([\d.]+(?:us|ms|s|m))", text, re.M)}
        if done.returncode != 0 or counted is None or set(shares) != {"50", "99"}:
            raise Told(f"`{' '.join(self.command)}`: {done.stderr.strip() or text.strip()}")
        calls = int(counted[1])
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        failed = sum(map(int, errors.groups())) if errors else 0
        failed += int(refused[1]) if refused else 0
        return {
            "calls": calls,
            "calls_per_second": calls / (micros(counted[2] + counted[3]) / 1e6),
            "p50_us": shares["50"],
            "p99_us": shares["99"],
            "failed": failed,
        }
