"""`sglang-dynasor chat` in a terminal, against a live server."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from contextlib import suppress

LIMIT_S = 120.0
_COLOURS = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command with a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self._fd, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
        )
        os.close(theirs)
        self.shown = ""

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def wait_for(self, text: str) -> str:
        """Everything up to `text`, without colours; it is taken off what is shown."""
        while text not in self.shown:
            ready, _, _ = select.select([self._fd], [], [], LIMIT_S)
            assert ready, f"{text!r} did not come: {self.shown[-2000:]}"
            with suppress(OSError):  # its end has closed
                data = os.read(self._fd, 65536)
                self.shown += _COLOURS.sub(b"", data).decode(errors="replace")
                continue
            raise AssertionError(f"it ended before {text!r}: {self.shown[-2000:]}")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def chat(url: str, *flags: str) -> Terminal:
    command = (sys.executable, "-m", "sglang_dynasor.cli", "chat", "--base-url", f"{url}/v1")
    return Terminal(*command, *flags)


def test_a_conversation_shows_probes_the_answer_and_what_it_cost(server_url: str) -> None:
    terminal = chat(server_url, "--probe-interval", "8", "--window", "3", "--max-tokens", "200")
    try:
        terminal.wait_for("> ")
        terminal.type("12+34")
        shown = terminal.wait_for(" probes")
        assert "tokens: " in shown  # a probe, on the way
        assert re.search(r"(certain|completed), certaindex [01]\.\d\d, answer \d+", shown)
        terminal.wait_for("> ")
        terminal.type("help")
        terminal.wait_for("exit or quit ends")
        terminal.type("reset")
        terminal.type("effort mild")
        terminal.type("11+22")
        shown = terminal.wait_for("inactive: saving_effort")
        assert re.search(r"completed, certaindex 0\.00, answer \d+", shown)
        terminal.type("quit")
        assert terminal.process.wait(LIMIT_S) == 0
    finally:
        terminal.close()


def test_a_chosen_model_is_the_one_that_is_asked(server_url: str) -> None:
    """The released chat forgot a valid `--model`."""
    terminal = chat(server_url, "--model", "some-model")
    try:
        assert "some-model at" in terminal.wait_for("> ")
    finally:
        terminal.close()


def test_a_server_that_is_not_there_is_named() -> None:
    terminal = chat("http://127.0.0.1:9")
    try:
        terminal.wait_for("no model at http://127.0.0.1:9")
        assert terminal.process.wait(LIMIT_S) != 0
    finally:
        terminal.close()
