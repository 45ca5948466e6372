"""What finished nodes answered: extracted, then put into groups of equals, one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sglang_dynasor.certaindex import extract_answer
from sglang_dynasor.programs.client import Generated, Probe
from sglang_dynasor.programs.grouping import Grouping

# One cut off by its length, or in a loop, has not answered.
_MAY_HAVE_ANSWERED = ("completed", "certain")


class AnswerFormat(NamedTuple):
    """How an answer is read from a text: see `certaindex.extract_answer`."""

    name: str
    pattern: str | None = None


BOXED = AnswerFormat("boxed")


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer of one node, "" where it gave none, and the key of its group.

    `regrouped` is set where this answer has split a group: of each node read before, its group now.
    """

    answer: str
    group: str
    regrouped: Mapping[str, str] | None = None


class Answers:
    """Reads the answers of one program; no step of it waits longer than the grouping's limit."""

    def __init__(
        self, answer_format: AnswerFormat, grouping: Grouping, pattern_time_limit_s: float
    ) -> None:
        self._format = answer_format
        self._grouping = grouping
        self._limit_s = pattern_time_limit_s
        self._read: dict[str, str] = {}  # the answer of each node
        self._revision = grouping.revision
        self._one_at_a_time = asyncio.Lock()
        self._question: asyncio.Task[None] | None = None
        self._settled = False

    @property
    def inactive(self) -> str:
        """How many answers only their spelling has grouped, and why; or ""."""
        return self._grouping.inactive

    async def read(self, node: str, generated: Generated) -> Reading:
        """Read what a node that ended by itself answers; several are read in the order of asking.

        Raises what the grouping raises.
        """
        async with self._one_at_a_time:
            answer = await self._extract(generated)
            if answer:
                await self._prepare(answer)
            group = self._grouping.key(answer)
            return Reading(answer, group, self._note(node, answer))

    async def read_probe(self, probe: Probe) -> Reading:
        """Read what a probe answers; "" where it is not whole. Its name is NODE@AT."""
        text = f"{probe.forced}{probe.text}" if probe.is_whole else ""
        name = f"{probe.node}@{probe.at}"
        return await self.read(name, Generated(text, probe.n_tokens, "completed"))

    def settle(self) -> None:
        """Wait for nothing any more: what has no verdict yet takes that of its spelling."""
        self._settled = True
        if self._question is not None:
            self._question.cancel()

    async def _extract(self, generated: Generated) -> str:
        if generated.stop_reason not in _MAY_HAVE_ANSWERED:
            return ""
        extract = partial(extract_answer, generated.text, *self._format, self._limit_s)
        # A client's own pattern may take all of its limit.
        return await asyncio.to_thread(extract) if self._format.name == "regex" else extract()

    async def _prepare(self, answer: str) -> None:
        question = self._question = asyncio.ensure_future(self._grouping.prepare(answer))
        if self._settled:  # after its first step, so that it knows that it was asked
            asyncio.get_running_loop().call_soon(question.cancel)
        await asyncio.wait([question])
        self._question = None
        if not question.cancelled():
            question.result()

    def _note(self, node: str, answer: str) -> Mapping[str, str] | None:
        regrouped = None
        if self._grouping.revision != self._revision:
            self._revision = self._grouping.revision
            regrouped = {name: self._grouping.key(given) for name, given in self._read.items()}
        self._read[node] = answer
        return regrouped
