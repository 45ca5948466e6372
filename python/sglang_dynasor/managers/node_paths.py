"""The paths of a program's nodes: what stands before each, and what the whole comes to.

A node continues the prompt, or a finished node; an output is upstream's, of the node alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_dynasor.programs.protocol import Start


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokenizer as far as paths need it; `eos_ids` end a text."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    eos_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class _Path:
    """What stands before a node's own output: the prompt, then `own_ids`, which read `text`."""

    own_ids: list[int]
    text: str = ""
    parent: str | None = None
    kept: int = 0  # tokens of the parent


_ROOT = _Path([])
# Of an output, one entry for each of its tokens.
_PER_TOKEN = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")


class NodePaths:
    """The paths of all nodes of a program, and `outputs`, those of the nodes that have ended."""

    def __init__(self, prompt: list[int], tokens: Tokens) -> None:
        self.outputs: dict[str, dict[str, Any]] = {}
        self._prompt = prompt
        self._tokens = tokens
        self._paths: dict[str, _Path] = {}

    def begin(self, start: Start) -> list[int]:
        """Note where a node starts; returns the tokens between the prompt and its own."""
        path = self._paths[start.node] = self._path_of(start)
        return path.own_ids

    def input_ids(self, node: str) -> list[int]:
        """All tokens before those of the node; those at the prompt share its list."""
        own_ids = self._paths[node].own_ids
        return [*self._prompt, *own_ids] if own_ids else self._prompt

    def text(self, node: str, own: str | None) -> str:
        """The text of the node's path, with `own` of the node itself."""
        return self._paths[node].text + (own or "")

    def whole(self, node: str, output: dict[str, Any]) -> dict[str, Any]:
        """An output of the node as that of its whole path."""
        path = self._paths[node]
        if path is _ROOT:
            return output
        text = self.text(node, output.get("text"))
        return {**output, "text": text, "output_ids": [*path.own_ids, *output["output_ids"]]}

    def closed(self, node: str, closing: str) -> dict[str, Any]:
        """The output of a finished node's whole path, completed by `closing`."""
        output = self._with_logprobs(node, self.whole(node, self.outputs[node]))
        if not closing:
            return output
        ids = [*output["output_ids"], *self._tokens.encode(closing)]
        return {**output, "text": output["text"] + closing, "output_ids": ids}

    def _with_logprobs(self, node: str, output: dict[str, Any]) -> dict[str, Any]:
        """An output with what was measured of each token of its path; forced ones have nothing."""
        meta = dict(output["meta_info"])
        path = self._paths[node]
        while path.parent is not None:
            before = self.outputs[path.parent]["meta_info"]
            for name in _PER_TOKEN:
                if name in before:
                    meta[name] = [*before[name][: path.kept], *meta.get(name, ())]
            path = self._paths[path.parent]
        return {**output, "meta_info": meta}

    def reuse(self) -> tuple[int, int]:
        """Tokens that nodes with a parent continue, prompt included, and those of them in cache."""
        continued = reused = 0
        for node, output in self.outputs.items():
            path = self._paths[node]
            if path.own_ids and output["output_ids"]:
                before = len(self._prompt) + len(path.own_ids)
                continued += before
                reused += min(before, output["meta_info"].get("cached_tokens") or 0)
        return continued, reused

    def finished(self, node: str) -> tuple[list[int], str]:
        """Tokens of a finished node's path, prompt first, without an end of text; and its text."""
        output = self.outputs[node]
        ids = output["output_ids"]
        if self.ends_by_itself(output):
            ids = ids[:-1]
        return [*self.input_ids(node), *ids], self.text(node, output.get("text"))

    def end_without_room(self, start: Start) -> str:
        """End a node before its first token: its path has used up what the request allows.

        Returns the text of the path.
        """
        assert start.parent is not None
        output = dict(self.outputs[start.parent])
        parents = output["meta_info"].items()
        meta = {name: value for name, value in parents if name not in _PER_TOKEN}
        meta["finish_reason"] = {"type": "length", "length": meta.get("completion_tokens", 0)}
        self.outputs[start.node] = {**output, "text": "", "output_ids": [], "meta_info": meta}
        return self.text(start.node, "")

    def ends_by_itself(self, output: dict[str, Any]) -> bool:
        """Whether an output's last token ends the text."""
        ids = output["output_ids"]
        return bool(ids) and ids[-1] in self._tokens.eos_ids

    def _path_of(self, start: Start) -> _Path:
        """The prompt, or a finished parent's path and output, then the forced text."""
        path = _ROOT
        if start.parent is not None:
            before, output = self._paths[start.parent], self.outputs[start.parent]
            ids, text = output["output_ids"], output.get("text") or ""
            if start.keep is not None and start.keep < len(ids):
                ids = ids[: start.keep]
                text = self._tokens.decode(ids)
            elif self.ends_by_itself(output):
                ids = ids[:-1]
            path = _Path([*before.own_ids, *ids], before.text + text, start.parent, len(ids))
        if not start.suffix:
            return path
        ids = [*path.own_ids, *self._tokens.encode(start.suffix)]
        return _Path(ids, path.text + start.suffix, path.parent, path.kept)
