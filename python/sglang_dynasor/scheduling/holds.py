"""Which siblings wait until one of them has prefilled the prompt they share."""

from __future__ import annotations

from sglang_dynasor.scheduling.program_entry import ProgramEntry, Request


class PrefixHolds:
    """Of requests whose prompts begin alike the first that waits goes; the others are `held`.

    Prompts of at least `hold_tokens` tokens that begin with the same `hold_tokens` are alike; 0:
    none are. Every call is O(1), but for the one that lets the others go.
    """

    def __init__(self, hold_tokens: int) -> None:
        self.held: set[Request] = set()
        self._hold_tokens = hold_tokens

    def arrive(self, entry: ProgramEntry, req: Request) -> None:
        """Compare how a new request begins with its siblings; once in its life."""
        if not 0 < self._hold_tokens <= len(req.origin_input_ids):
            return
        head = tuple(req.origin_input_ids[: self._hold_tokens])
        if not entry.alike and head != entry.prompt_head:
            entry.prompt_head, entry.prompt_cached = head, False
        if head == entry.prompt_head:
            entry.alike.add(req)

    def wait(self, entry: ProgramEntry, req: Request) -> None:
        """A request waits: it goes first where no sibling does."""
        if req not in entry.alike or entry.prompt_cached:
            return
        if entry.first is None:
            entry.first = req
        elif entry.first is not req:
            self.held.add(req)

    def prefilled(self, entry: ProgramEntry, req: Request) -> None:
        """A request has been prefilled: its siblings find their prompt in the cache."""
        if req in entry.alike and not entry.prompt_cached:
            entry.prompt_cached, entry.first = True, None
            self.held -= entry.alike

    def leave(self, entry: ProgramEntry, req: Request) -> None:
        """A request is gone; where it went first, the next one does."""
        entry.alike.discard(req)
        self.held.discard(req)
        if entry.first is req:
            entry.first = next((other for other in entry.waiting if other in entry.alike), None)
            self.held -= {entry.first}
