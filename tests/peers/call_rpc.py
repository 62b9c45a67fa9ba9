#!/usr/bin/env python3
"""Calls one method on a Unix socket with gRPC's C core, once for each `:authority`, and prints one JSON line for each call.

    call_rpc.py --socket /run/ca.sock --method hoplite.ca.v1.Admin/ListAgents [AUTHORITY …]

Each line: {"authority", "code", "detail"}; the code is gRPC's, as `OK`. The first call is with the authority that the
library chooses itself, null in its line. Its request is an empty message. Ends with 0.
"""

import argparse
import json

import grpc


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("authorities", nargs="*")
    arguments = parser.parse_args()
    metadata = [tuple(header.split("=", 1)) for header in arguments.header]
    for authority in [None, *arguments.authorities]:
        options = [("grpc.default_authority", authority)] if authority is not None else []
        with grpc.insecure_channel(f"unix:{arguments.socket}", options=options) as channel:
            call = channel.unary_stream if "/Fetch" in arguments.method else channel.unary_unary
            method = call(f"/{arguments.method}", request_serializer=bytes, response_deserializer=bytes)
            line = {"authority": authority, "code": "OK", "detail": ""}
            try:
                # Twice on one connection: the second names the authority by the table of the first.
                for _ in range(2):
                    answer = method(b"", timeout=10, metadata=metadata)
                    if "/Fetch" in arguments.method:
                        next(iter(answer))
                        answer.cancel()
            except grpc.RpcError as error:
                line |= {"code": error.code().name, "detail": error.details()}
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
