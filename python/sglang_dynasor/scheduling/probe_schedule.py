"""When probes of running requests are forked: never above a share, never at others' cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_dynasor.scheduling.program_entry import Request
from sglang_dynasor.scheduling.room import Load

# Probes may take this share of the engine's places, which is kept for them while some are wanted.
PROBE_SHARE = 1 / 8
# A fork costs a prefill pass, whatever it holds: requests that are due soon are probed with those
# that are due now. This share of their interval early.
_EARLY_SHARE = 1 / 4
# Tokens every running request takes while a probe runs, beyond those of the probe itself.
_STEPS_OF_A_PROBE = 4


@dataclass(slots=True, eq=False)
class Watched:
    """A request that is probed each `every` of its tokens; a probe takes `tokens` of KV at most.

    `content` is what it is made of, the engine's own.
    """

    every: int
    tokens: int
    content: Any
    next_at: int
    probing: bool = False


class ProbeSchedule:
    """The watched requests of all programs, and which of them are to be probed now."""

    def __init__(self, places: int) -> None:
        """`places` is how many requests may run side by side."""
        self._places = places
        self._most = max(1, int(PROBE_SHARE * places))
        self._watched: dict[Request, Watched] = {}
        self.underway = 0

    def __len__(self) -> int:
        return len(self._watched)

    def content_of(self, req: Request) -> Any:
        """What a probe of `req` is made of, None where nobody watches it."""
        watched = self._watched.get(req)
        return None if watched is None else watched.content

    @property
    def reserved(self) -> int:
        """Places that nothing but a probe may take now, one place at least staying for others."""
        if not self._watched:
            return 0
        return max(0, min(self._most, self._places - 1) - self.underway)

    def watch(self, req: Request, every: int, tokens: int, content: Any, after: int = 0) -> None:
        """Probe `req` each `every` tokens from now on, after `after` at first; 0: no more."""
        known = self._watched.pop(req, None)
        if every:
            probing = known is not None and known.probing
            next_at = max((len(req.output_ids) // every + 1) * every, after)
            self._watched[req] = Watched(every, tokens, content, next_at, probing)
        elif known is not None and known.probing:
            self.underway -= 1

    def forget(self, req: Request) -> None:
        """A watched request has gone."""
        self.watch(req, 0, 0, None)

    def due(self, load: Load) -> list[tuple[Request, Any]]:
        """Take those to be probed now, with what each probe is made of, the latest first.

        None where a probe would need a place or KV that running requests need; what is passed over
        stays due.
        """
        places = min(self._most - self.underway, self._places - load.running - self.underway)
        if places < 1:
            return []
        free = [item for item in self._watched.items() if not item[1].probing]
        late = {req: len(req.output_ids) - watched.next_at for req, watched in free}
        if max(late.values(), default=-1) < 0:
            return []
        soon = [
            (req, watched) for req, watched in free if late[req] >= -_EARLY_SHARE * watched.every
        ]
        soon.sort(key=lambda item: -late[item[0]])
        taken: list[tuple[Request, Any]] = []
        kv_tokens = load.kv_tokens
        for req, watched in soon[:places]:
            ahead = (load.running + len(taken)) * (watched.tokens + _STEPS_OF_A_PROBE)
            kv_tokens -= watched.tokens
            if kv_tokens < ahead:
                break
            watched.probing = True
            watched.next_at = len(req.output_ids) + watched.every
            self.underway += 1
            taken.append((req, watched.content))
        return taken

    def ended(self, req: Request) -> None:
        """The probe of `req` has ended, or was not to be had."""
        watched = self._watched.get(req)
        if watched is not None and watched.probing:
            watched.probing = False
            self.underway -= 1
