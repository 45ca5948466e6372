"""Which requests of a program wait until another has prefilled their prompt."""

from __future__ import annotations

from sglang_dynasor.scheduling import ProgramKey, ProgramScheduler
from support.slot_engine import FakeRequest, SlotEngine

THRESHOLD = 64
LONG, OTHER, SHORT = range(100), range(1, 101), range(THRESHOLD - 1)


class Holding:
    """Requests of one program that wait, by name, under the engine's own order."""

    def __init__(self, **prompts: range) -> None:
        self.programs = ProgramScheduler(None, hold_tokens=THRESHOLD)
        self.requests: dict[str, FakeRequest] = {}
        self.add(**prompts)

    def add(self, **prompts: range) -> None:
        for rid, prompt in prompts.items():
            self.requests[rid] = request = FakeRequest(rid, origin_input_ids=list(prompt))
            self.programs.arrived(request, ProgramKey("", "p"))
            self.programs.queued(request)

    def held(self) -> set[str]:
        queue = list(self.requests.values())
        self.programs.hold(queue)
        seen = {request.rid for request in queue}
        self.programs.release(queue)
        return self.requests.keys() - seen


def test_siblings_wait_for_the_first_until_their_prompt_is_cached() -> None:
    holding = Holding(a=LONG, b=LONG, c=LONG)
    assert holding.held() == {"b", "c"}
    first = holding.requests.pop("a")
    holding.programs.admitted([first])
    assert holding.held() == {"b", "c"}
    holding.programs.prefilled(first)
    assert holding.held() == set()


def test_the_next_goes_when_the_first_is_gone_before_it_was_prefilled() -> None:
    holding = Holding(a=LONG, b=LONG, c=LONG)
    first = holding.requests.pop("a")
    holding.programs.admitted([first])
    holding.programs.gone(first)
    assert holding.held() == {"c"}


def test_the_others_go_together_when_the_first_ended_with_its_prefill() -> None:
    holding = Holding(a=LONG, b=LONG, c=LONG)
    first = holding.requests.pop("a")
    holding.programs.admitted([first])
    holding.programs.finished(first, completed=True)
    assert holding.held() == set()


def test_requests_with_another_beginning_or_a_short_prompt_do_not_wait() -> None:
    assert Holding(a=LONG, b=OTHER, c=LONG).held() == {"c"}
    assert Holding(a=SHORT, b=SHORT).held() == set()
    assert Holding(a=LONG).held() == set()


def test_a_request_with_another_beginning_that_runs_keeps_nobody_waiting() -> None:
    holding = Holding(a=LONG, b=OTHER, c=LONG)
    other = holding.requests.pop("b")
    holding.programs.admitted([other])
    assert holding.held() == {"c"}
    holding.programs.prefilled(other)
    assert holding.held() == {"c"}


def test_the_next_prompt_of_a_clients_program_is_prefilled_once_too() -> None:
    holding = Holding(a=LONG)
    first = holding.requests.pop("a")
    holding.programs.admitted([first])
    holding.programs.finished(first, completed=True)
    holding.add(b=OTHER, c=OTHER)
    assert holding.held() == {"c"}


def test_plain_requests_of_the_same_prompt_never_wait() -> None:
    engine = SlotEngine(4, hold_tokens=4)
    engine.send(None, [3] * 4)
    engine.step()
    assert len(engine.admitted) == 4
