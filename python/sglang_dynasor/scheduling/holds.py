"""Which siblings wait until one of them has prefilled the prompt they share."""

from __future__ import annotations

from sglang_dynasor.scheduling.program_entry import ProgramEntry, Request


class PrefixHolds:
    """Programs whose prompt is not in the cache yet, though several of their requests begin alike.

    Prompts of at least `hold_tokens` tokens that begin with the same `hold_tokens` are prefilled
    one before the others; 0: together.
    """

    def __init__(self, hold_tokens: int) -> None:
        self._hold_tokens = hold_tokens
        self._cold: dict[int, ProgramEntry] = {}  # by arrival

    def arrive(self, entry: ProgramEntry, req: Request) -> None:
        """Compare how a new request begins with its siblings; once in its life."""
        if not 0 < self._hold_tokens <= len(req.origin_input_ids):
            return
        head = tuple(req.origin_input_ids[: self._hold_tokens])
        if not entry.alike and head != entry.prompt_head:
            entry.prompt_head, entry.prompt_cached = head, False
        if head == entry.prompt_head:
            entry.alike.add(req)

    def prefilled(self, entry: ProgramEntry, req: Request) -> None:
        """A request has been prefilled: its siblings find their prompt in the cache."""
        if req in entry.alike:
            entry.prompt_cached = True
            self._cold.pop(entry.arrival, None)

    def update(self, entry: ProgramEntry) -> None:
        """Follow a program of which a request came, went, waits or runs."""
        if len(entry.alike) > 1 and entry.waiting and not entry.prompt_cached:
            self._cold[entry.arrival] = entry
        else:
            self._cold.pop(entry.arrival, None)

    def held(self) -> set[Request]:
        """Requests that wait for a sibling: what runs is being prefilled, else the first goes."""
        held: set[Request] = set()
        for entry in self._cold.values():
            waiting = [req for req in entry.waiting if req in entry.alike]
            first_goes = entry.alike.isdisjoint(entry.running)
            held.update(waiting[1:] if first_goes else waiting)
        return held
