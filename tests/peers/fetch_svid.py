#!/usr/bin/env python3
"""Watches the Workload API with py-spiffe and prints one JSON line per X.509 SVID it is given.

    fetch_svid.py --socket unix:///run/agent.sock --count 2 --seconds 30

Each line: {"spiffe_id", "serial" (hex), "not_after" (RFC 3339), "default" (true for the first of a response)}.
Ends with 0 once `--count` distinct serials of the default SVID were seen, with 3 and {"error": "PermissionDenied",
"detail"} when the agent knows no identity for this process, with 1 and {"error", "detail"} on anything else.
"""

import argparse
import json
import queue
import sys
import time

import grpc
from spiffe import WorkloadApiClient


def refusal(error: BaseException) -> tuple[int, dict[str, str]]:
    """The exit code and the line for an error. py-spiffe keeps the gRPC status as the cause of its own error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, grpc.Call):
        cause = cause.__cause__
    if isinstance(cause, grpc.Call):
        name = "".join(word.capitalize() for word in cause.code().name.split("_"))
        return (3 if name == "PermissionDenied" else 1), {"error": name, "detail": cause.details() or ""}
    if "PERMISSION_DENIED" in str(error):  # from a stream: there py-spiffe keeps the code only
        return 3, {"error": "PermissionDenied", "detail": str(error)}
    return 1, {"error": type(error).__name__, "detail": str(error)}


def report(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def watch(socket: str, count: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    events: queue.Queue = queue.Queue()
    client = WorkloadApiClient(socket)
    client.fetch_x509_svid(timeout=seconds)  # a refusal of this call tells the agent's reason
    # No reconnecting: a judge must see a stream that ended, not paper over it.
    stream = client.stream_x509_contexts(events.put, events.put, retry_connect=False)
    seen: set[int] = set()
    try:
        while len(seen) < count:
            try:
                event = events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                report({"error": "Deadline", "detail": f"{len(seen)} of {count} serials within {seconds} s"})
                return 1
            if isinstance(event, Exception):
                code, line = refusal(event)
                report(line)
                return code
            for svid in event.x509_svids:
                report({
                    "spiffe_id": str(svid.spiffe_id),
                    "serial": f"{svid.leaf.serial_number:x}",
                    "not_after": svid.leaf.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "default": svid is event.x509_svids[0],
                })
            seen.add(event.default_svid.leaf.serial_number)
        return 0
    finally:
        stream.cancel()
        client.close()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--socket", required=True, help="the Workload API, unix:///path")
    arguments.add_argument("--count", type=int, default=1, help="how many distinct serials to wait for")
    arguments.add_argument("--seconds", type=float, default=30.0, help="how long to wait for them")
    given = arguments.parse_args()
    try:
        return watch(given.socket, given.count, given.seconds)
    except Exception as error:  # a missing socket, for one: said as JSON like all else
        code, line = refusal(error)
        report(line)
        return code


if __name__ == "__main__":
    sys.exit(main())
