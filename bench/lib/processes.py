"""Processes that are measured: started, asked what the kernel counts of them, and stopped."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 30.0


class Told(Exception):
    """What the person who measures has to hear."""


class Processes:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: dict[str, subprocess.Popen] = {}

    def start(self, name: str, *command: str | Path) -> None:
        log = (self.directory / f"{name}.log").open("wb")
        words = [str(word) for word in command]
        self.running[name] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory)

    def said(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")[-2_000:]

    def until(self, what: str, name: str, holds: Callable[[], bool]) -> None:
        """Waits for `holds`; says what `name` had to say when it never does."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if holds():
                return
            if self.running[name].poll() is not None:
                raise Told(f"{name} has ended before this: {what}\n{self.said(name)}")
            time.sleep(0.02)
        raise Told(f"{name}: not within {PATIENCE:.0f} s: {what}\n{self.said(name)}")

    def family(self, name: str) -> list[int]:
        """The process and its children: some servers work in those."""
        first = self.running[name].pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def cpu(self, name: str) -> int:
        """Nanoseconds on a processor so far, of all its threads."""
        spent = 0
        for pid in self.family(name):
            for task in Path(f"/proc/{pid}/task").iterdir():
                spent += int((task / "schedstat").read_text().split()[0])
        return spent

    def memory(self, name: str) -> int:
        """Resident bytes that are not a file's."""
        resident = 0
        for pid in self.family(name):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    resident += int(line.split()[1]) << 10
        return resident

    def version(self, program: Path) -> str:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        return said.stdout.strip() + (" (debug build)" if "/debug/" in str(program) else "")

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.running.values()):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def run(*command: str | Path, codes: tuple[int, ...] = (0,)) -> str:
    """Runs a command to its end and gives what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
    if done.returncode not in codes:
        raise Told(f"`{' '.join(words)}` exits with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
