"""What a virtual model generates: the answers and lengths of recorded or made-up samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sglang_dynasor.managers.engine_nodes import program_and_node

FILLER = "."  # what every token is that says nothing
_OPEN_BOX = "\\boxed{"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one request generates: so many tokens, the last of which are `text` and, where it
    `ends`, the end of text.
    """

    n_tokens: int
    text: str
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: the node it is or probes, the text it was given behind the program's prompt, how
    many tokens that say nothing are in it, and the texts at which it stops.
    """

    program_id: str
    node: str
    path: str
    written: int
    stops: tuple[str, ...] = ()


class Script(Protocol):
    """Says what each request of each program generates, whenever it is started."""

    def prompt_tokens(self, program_id: str) -> int: ...

    def sample(self, asked: Asked) -> Sample: ...


@dataclass(frozen=True, slots=True)
class Branch:
    """A recorded sample: its tokens, its answer, and `interim` ones, each from so many tokens on,
    which it would give where its answer is asked for before its end.
    """

    n_tokens: int
    answer: str
    interim: Sequence[tuple[int, str]] = ()

    def answer_at(self, tokens: int) -> str:
        """What it would answer after so many tokens; "" before the first."""
        if tokens >= self.n_tokens or not self.interim:
            return self.answer
        index = bisect_right(self.interim, tokens, key=lambda entry: entry[0])
        return self.interim[index - 1][1] if index else ""


@dataclass(frozen=True, slots=True)
class RecordedScript:
    """Branches by program; node i is the i-th, and further ones answer for the last.

    A request that begins behind a branch's text is a probe, or makes a chain that was cut answer:
    it gives the interim answer.
    """

    branches: Mapping[str, Sequence[Branch]]
    prompts: Mapping[str, int]  # tokens

    def prompt_tokens(self, program_id: str) -> int:
        return self.prompts[program_id]

    def sample(self, asked: Asked) -> Sample:
        branches = self.branches[asked.program_id]
        branch = branches[min(int(asked.node), len(branches) - 1)]
        if not asked.path:
            return Sample(branch.n_tokens, f"{_OPEN_BOX}{branch.answer}}}")
        opening = "" if asked.path.endswith(_OPEN_BOX) else _OPEN_BOX
        return Sample(0, f"{opening}{branch.answer_at(asked.written)}}}")


class ScriptedTokens:
    """The tokens of requests; those of a request that has gone are forgotten."""

    def __init__(self, script: Script, tokenizer: Any) -> None:
        self._script = script
        self._tokenizer = tokenizer
        (self._filler,) = self._encode(FILLER)
        self._tails: dict[str, tuple[int, list[int]]] = {}

    def token(self, req: Any, index: int) -> int:
        """The token of a request at `index` of its output."""
        if req.rid not in self._tails:
            self._tails[req.rid] = self._tail(req)
        begins, tail = self._tails[req.rid]
        if index < begins:
            return self._filler
        return tail[min(index - begins, len(tail) - 1)]

    def forget(self, rid: str) -> None:
        """A request has ended."""
        self._tails.pop(rid, None)

    def _tail(self, req: Any) -> tuple[int, list[int]]:
        program_id, node = program_and_node(req.rid)
        path = list(req.origin_input_ids[self._script.prompt_tokens(program_id) :])
        text = self._tokenizer.decode(path) if path else ""
        stops = tuple(req.sampling_params.stop_strs or ())
        written = path.count(self._filler)
        sample = self._script.sample(Asked(program_id, node, text, written, stops))
        tail = self._encode(sample.text)
        if sample.ends:
            tail.append(self._tokenizer.eos_token_id)
        return max(0, sample.n_tokens - len(tail)), tail

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
