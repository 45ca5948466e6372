"""How a worker process answers: on its stdout, with nothing else there, whatever prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


def reply_stream() -> TextIO:
    """What was stdout; from now on whatever else prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return replies


def serve_commands(replies: TextIO, run: Callable[[dict[str, Any]], Any]) -> None:
    """Say that the worker is ready, then answer each line of stdin with one, until it ends."""
    replies.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        replies.write(json.dumps(run(json.loads(line))) + "\n")
