"""What the serving benchmark compares, and how a client without us counts its votes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sglang_dynasor.certaindex import CertaindexTracker, MathEquality, extract_answer
from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.demo import Problem
from sglang_dynasor.programs import grouping_of

LOOP_GRANTS = (4, 3, 3)  # of the client's own loop; one more round takes the branches left


@dataclass(frozen=True, slots=True)
class System:
    """What is compared: who runs the programs, and the settings of the engine.

    `client`: "fixed" and "loop" send ordinary requests to the stock engine under `policy`;
    "program" sends one program to ours, with `settings` and the request fields `fields`.
    """

    client: Literal["fixed", "loop", "program"]
    policy: str = "fcfs"
    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


NEVER_STOPS = {"mode": "shadow"}  # every branch runs; the rule's decision is only noted
SYSTEMS = {
    "lpm_fixed": System("fixed", "lpm"),
    "fcfs_fixed": System("fixed", "fcfs"),
    "client_side": System("loop", "lpm"),
    "gang_fixed": System("program", settings={"policy": "gang"}, fields=NEVER_STOPS),
    "gang_sjf_fixed": System("program", settings={"policy": "gang-sjf"}, fields=NEVER_STOPS),
    "certaindex_lpm": System("program", "lpm", settings={"policy": "lpm", "draw": "rounds"}),
    "certaindex_gang": System("program", settings={"policy": "gang", "draw": "rounds"}),
    "full": System("program", settings={"speculative_share": 0.5}),
}


class Votes:
    """The answers of one program whose client counts them itself, grouped as ours are."""

    def __init__(
        self, problem: Problem, max_branches: int, config: DynasorConfig, equality: MathEquality
    ) -> None:
        self.tokens = 0
        self.aborted = False
        self._problem = problem
        self._max_branches = max_branches
        self._grouping = grouping_of(problem.answer_format, config, equality)
        self.tracker = CertaindexTracker(max_branches, self._grouping.key)
        self._answers: dict[int, str] = {}
        self._limit_s = config.pattern_time_limit_ms / 1000

    @property
    def winner(self) -> str:
        return self.tracker.leader.answer if self.tracker.leader else ""

    async def add(self, outputs: list[tuple[int, dict[str, Any]]]) -> None:
        """Count finished requests, the lowest index first."""
        outputs.sort(key=lambda entry: entry[0])
        for index, output in outputs:
            meta = output["meta_info"]
            reason = meta["finish_reason"]["type"]
            self.tokens += meta.get("completion_tokens", 0)
            self.aborted |= reason == "abort"
            answer = ""  # a branch cut off by length has not answered
            if reason == "stop":
                answer = extract_answer(
                    output["text"],
                    self._problem.answer_format,
                    self._problem.answer_pattern,
                    self._limit_s,
                )
            self._answers[index] = answer
            revision = self._grouping.revision
            await self._grouping.prepare(answer)
            self.tracker.add(index, answer)
            if revision != self._grouping.revision:
                self._recount()

    def _recount(self) -> None:
        self.tracker = CertaindexTracker(self._max_branches, self._grouping.key)
        for index, answer in self._answers.items():
            self.tracker.add(index, answer)
