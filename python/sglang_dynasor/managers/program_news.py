"""What a streaming client is told of its program on the way, as comments of the stream.

Comments of server-sent events are lines that begin with a colon: clients that don't look for them
don't see them. Each of ours is one JSON object behind `MARK`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sglang_dynasor.programs.protocol import (
    Action,
    Event,
    Finished,
    Outcome,
    Probed,
    ReasoningProgram,
)

MARK = ": dynasor "
# Attribute of a request of this process: the comments nobody has sent yet.
NEWS = "dynasor_news"


def take_news(obj: Any) -> list[str]:
    """The comments that are due, each once."""
    news: list[str] = vars(obj).get(NEWS, [])
    taken, news[:] = list(news), []
    return taken


class ToldProgram:
    """A program whose probes and finished nodes are told as they come."""

    def __init__(self, program: ReasoningProgram, obj: Any) -> None:
        self.start = program.start
        self._program = program
        self._news: list[str] = vars(obj).setdefault(NEWS, [])

    def on(self, events: Sequence[Event]) -> Sequence[Action] | Outcome:
        """Tell what has happened, and hand it on."""
        for event in events:
            if isinstance(event, Probed):
                probe = {
                    "at": event.at,
                    "answer": event.answer,
                    "hedged": event.hedged,
                    "confidence": event.confidence,
                }
                self._tell({"node": event.node, "probe": probe})
            elif isinstance(event, Finished):
                told = {"node": event.node, "answer": event.answer, "tokens": event.n_tokens}
                self._tell(told | {"stop_reason": event.stop_reason})
        return self._program.on(events)

    def _tell(self, content: dict[str, Any]) -> None:
        self._news.append(f"{MARK}{json.dumps(content, ensure_ascii=False)}\n\n")
