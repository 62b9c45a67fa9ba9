#!/usr/bin/env python3
"""A gRPC service and its callers, by gRPC's C core.

    grpc_pair.py serve --port 50051                   serves until it is killed, and says `serving`
    grpc_pair.py call --target 127.0.0.1:50052 METHOD…   calls each, and prints one JSON line for each

The service is `orders.Orders`: `Echo` gives back its message, `Dies` ends the whole process after one message of its
stream, `Stays` sends one message and holds its stream. Each line of a call: {"method", "code", "detail", "decision",
"messages"}; the decision is what the metadata say, at the call's beginning or its end. Ends with 0.
"""

import argparse
import concurrent.futures
import json
import os
import time

import grpc

SERVICE = "orders.Orders"


def echo(request: bytes, _: grpc.ServicerContext) -> bytes:
    return request


def dies(request: bytes, _: grpc.ServicerContext):
    yield request
    time.sleep(0.3)  # what was said is on its way
    os._exit(1)


def stays(request: bytes, context: grpc.ServicerContext):
    yield request
    while context.is_active():
        time.sleep(0.1)


def serve(port: int) -> None:
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Dies": grpc.unary_stream_rpc_method_handler(dies),
        "Stays": grpc.unary_stream_rpc_method_handler(stays),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if server.add_insecure_port(f"127.0.0.1:{port}") != port:
        raise SystemExit(f"cannot listen on {port}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def call(target: str, methods: list[str], seconds: float) -> None:
    with grpc.insecure_channel(target) as channel:
        for name in methods:
            method = channel.unary_stream(f"/{SERVICE}/{name}")
            line = {"method": name, "code": "OK", "detail": "", "messages": 0}
            answers = method(b"message", timeout=seconds)
            try:
                for answer in answers:
                    line["messages"] += answer == b"message"
            except grpc.RpcError as error:
                line |= {"code": error.code().name, "detail": error.details()}
            metadata = [*(answers.initial_metadata() or ()), *(answers.trailing_metadata() or ())]
            line["decision"] = next((value for key, value in metadata if key == "x-hoplite-decision"), None)
            print(json.dumps(line), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("--port", type=int, required=True)
    caller = commands.add_parser("call")
    caller.add_argument("--target", required=True)
    caller.add_argument("--seconds", type=float, default=20)
    caller.add_argument("methods", nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.port)
    else:
        call(arguments.target, arguments.methods, arguments.seconds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
