"""The Workload API in raw HTTP/2 over its Unix socket: so little on the caller's side that what is measured is the agent."""

import socket
import struct
from pathlib import Path

DATA, HEADERS, RESET, SETTINGS, PING, AWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1


class Ended(Exception):
    """The agent hung up."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that neither side remembers, of fewer than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


ASKED = b"".join(
    literal(name, value)
    for name, value in [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"localhost"),
        (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"workload.spiffe.io", b"true"),
    ]
)


class Caller:
    """One connection of one workload."""

    def __init__(self, path: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        window = struct.pack(">HI", 4, 1 << 30)
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, window) + frame(WINDOW, 0, 0, struct.pack(">I", 1 << 30))
        )
        self.read, self.next = b"", 1

    def ask(self) -> int:
        """Opens a stream of SVIDs, and says its number."""
        stream, self.next = self.next, self.next + 2
        self.socket.sendall(frame(HEADERS, END_HEADERS, stream, ASKED) + frame(DATA, END_STREAM, stream, b"\0\0\0\0\0"))
        return stream

    def frame(self) -> tuple[int, int, int, bytes]:
        while True:
            long = int.from_bytes(self.read[:3], "big")
            if len(self.read) >= 9 + long:
                kind, flags = self.read[3], self.read[4]
                stream, payload = int.from_bytes(self.read[5:9], "big") & 0x7FFFFFFF, self.read[9 : 9 + long]
                self.read = self.read[9 + long :]
                if kind in (SETTINGS, PING) and not flags & ACK:
                    self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
                return kind, flags, stream, payload
            more = self.socket.recv(1 << 16)
            if not more:
                raise Ended
            self.read += more

    def answers(self, streams: set[int]) -> tuple[int, int]:
        """Waits until each of these streams has an answer: how many have SVIDs, and how many were refused."""
        waiting, given, refused, parts = set(streams), 0, 0, {}
        while waiting:
            kind, flags, stream, payload = self.frame()
            if kind == AWAY:
                raise Ended
            if stream not in waiting:
                continue
            if kind == DATA:
                part = parts[stream] = parts.get(stream, b"") + payload
                if len(part) >= 5 and len(part) >= 5 + int.from_bytes(part[1:5], "big"):
                    given += 1
                    waiting.discard(stream)
            elif kind == RESET or kind == HEADERS and flags & END_STREAM:
                refused += 1
                waiting.discard(stream)
        return given, refused

    def fetch(self) -> bool:
        """Whether there are SVIDs; the stream ends with the first answer."""
        stream = self.ask()
        given, _ = self.answers({stream})
        if given:
            self.socket.sendall(frame(RESET, 0, stream, struct.pack(">I", 8)))
        return given == 1

    def close(self) -> None:
        self.socket.close()
