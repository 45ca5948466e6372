"""What a virtual model generates: the answers and lengths of recorded or made-up samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sglang_dynasor.managers.engine_nodes import program_and_node


@dataclass(frozen=True, slots=True)
class Sample:
    """One node: so many tokens, the last of which are `text` and the end of text."""

    n_tokens: int
    text: str


class Script(Protocol):
    """Says what each node of each program generates, whenever it is started."""

    def sample(self, program_id: str, node: str) -> Sample: ...


@dataclass(frozen=True, slots=True)
class RecordedScript:
    """Samples by program; node i is the i-th."""

    samples: Mapping[str, Sequence[Sample]]

    def sample(self, program_id: str, node: str) -> Sample:
        return self.samples[program_id][int(node)]


class ScriptedTokens:
    """The tokens of requests, by their ids; those of a request that has gone are forgotten."""

    def __init__(self, script: Script, tokenizer: Any) -> None:
        self._script = script
        self._tokenizer = tokenizer
        (self._filler,) = self._encode(".")
        self._tails: dict[str, tuple[int, list[int]]] = {}

    def token(self, rid: str, index: int) -> int:
        """The token of a request at `index` of its output."""
        if rid not in self._tails:
            self._tails[rid] = self._tail(rid)
        begins, tail = self._tails[rid]
        if index < begins:
            return self._filler
        return tail[min(index - begins, len(tail) - 1)]

    def forget(self, rid: str) -> None:
        """A request has ended."""
        self._tails.pop(rid, None)

    def _tail(self, rid: str) -> tuple[int, list[int]]:
        sample = self._script.sample(*program_and_node(rid))
        tail = [*self._encode(sample.text), self._tokenizer.eos_token_id]
        return max(0, sample.n_tokens - len(tail)), tail

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
