"""Probes inside the engine: a request forked off a running one, whose output no client sees.

Upstream: `sglang/srt/managers/schedule_batch.py` (`Req`), `mem_cache/base_prefix_cache.py`
(`checkpoint`, which may be called for a running request). A fork shares the KV of its parent; what
it adds never enters the tree.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH, Req, ScheduleBatch
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_dynasor.kernels.token_certainty import COLUMNS
from sglang_dynasor.managers.program_messages import (
    CUT_MESSAGE,
    ProbedReqOutput,
    WatchReqInput,
)

_BOX = "\\boxed{"
_LONGEST_BOX = 64  # tokens of an answer that is read where it is written
_LIKELIEST = COLUMNS.index("top1_probability")


@dataclass(frozen=True, slots=True)
class _Probe:
    parent: Req
    asked: WatchReqInput
    at: int


class EngineProbes:
    """The probes that are underway: forks them, ends them, and tells what they have said.

    Which requests are probed, and when, `ProgramScheduler.probes` decides.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._probes: dict[Req, _Probe] = {}
        self._number = 0

    def __contains__(self, req: Req) -> bool:
        return req in self._probes

    def __len__(self) -> int:
        return len(self._probes)

    def of(self, parents: Iterable[Req]) -> list[Req]:
        """The probes of these requests."""
        if not self._probes:
            return []
        wanted = set(parents)
        return [req for req, probe in self._probes.items() if probe.parent in wanted]

    def fork_due(self, running_batch: ScheduleBatch, last_batch: Any) -> list[Req]:
        """Fork the probes that are due: they go first in the pass that follows, or not at all."""
        engine = self._scheduler
        schedule = engine.programs.probes
        if not len(schedule) or engine._engine_paused:
            return []
        prefilled = last_batch if last_batch and last_batch.forward_mode.is_extend() else None
        forked = []
        for parent, asked in schedule.due(engine.load_of(running_batch, prefilled)):
            if not engine.programs.table.runs(parent) or parent.finished() or parent.to_finish:
                schedule.ended(parent)
            else:
                forked.append(self._fork(parent, asked))
        if forked:
            # Upstream looks at no queue of a batch that was full; these have places of their own.
            running_batch.batch_is_full = False
        engine.waiting_queue.extend(forked)
        return forked

    def _fork(self, parent: Req, asked: WatchReqInput) -> Req:
        """Publish what `parent` has computed, and return a request that answers from there.

        The newest token is left out of what is published: under overlap its KV is being written.
        """
        engine = self._scheduler
        at = len(parent.output_ids)
        known = len(parent.origin_input_ids) + at
        parent.refresh_fill_ids()
        engine.tree_cache.checkpoint(parent, up_to=known - 1)
        params = SamplingParams(max_new_tokens=asked.max_tokens, temperature=0.0)
        params.normalize(engine.tokenizer)
        self._number += 1
        probe = Req(
            f"{parent.rid}probe{self._number}.",
            "",
            array("q", [*parent.origin_input_ids, *parent.output_ids, *asked.input_ids]),
            params,
            lora_id=parent.lora_id,
            eos_token_ids=parent.eos_token_ids,
            vocab_size=parent.vocab_size,
            priority=parent.priority,
            extra_key=parent.extra_key,
            cache_salt=parent.cache_salt,
            http_worker_ipc=parent.http_worker_ipc,
        )
        probe.tokenizer = engine.tokenizer
        probe.skip_radix_cache_insert = True
        engine.init_req_max_new_tokens(probe)
        probe.time_stats.set_wait_queue_entry_time()
        if asked.measured and engine.certainty_observer is not None:
            engine.certainty.open(probe.rid, None, True)
        self._probes[probe] = _Probe(parent, asked, at)
        return probe

    def drop_unplaced(self, forked: Sequence[Req]) -> None:
        """Take back the probes that found no place: what waits must not wait for them."""
        if not forked:
            return
        engine = self._scheduler
        waiting = set(engine.waiting_queue)
        for req in engine.taken_from_queues({req for req in forked if req in waiting}):
            engine._release_aborted_request(req)
            engine.certainty.close(req.rid, "aborted")
            self.drop(req)

    def drop(self, req: Req) -> None:
        """Forget a probe that has no answer; one that is none of ours is passed over."""
        probe = self._probes.pop(req, None)
        if probe is not None:
            self._scheduler.programs.probes.ended(probe.parent)

    def end_if_answered(self, req: Req) -> None:
        """End a running probe that has closed the box its text opened."""
        if req.to_finish is None and _closes_box(self._decode(req.output_ids)):
            req.to_finish = FINISH_ABORT(CUT_MESSAGE)

    def read_own_answer(self, req: Req) -> None:
        """Tell the program where a watched request has just written a boxed answer by itself."""
        asked = self._scheduler.programs.probes.content_of(req)
        if asked is None or not req.output_ids or req.output_ids[-1] not in self._closing_ids:
            return
        text = self._decode(req.output_ids[-_LONGEST_BOX:])
        box = text.rfind(_BOX)
        if box < 0 or not _closes_box(text[box + len(_BOX) :]):
            return
        answer = ProbedReqOutput(
            tenant=asked.tenant,
            program_id=asked.program_id,
            rid=req.rid,
            at=len(req.output_ids),
            text=text[box:],
            n_tokens=0,
            is_whole=True,
            is_own=True,
        )
        self._scheduler.send_control_output(answer, answer)

    @cached_property
    def _closing_ids(self) -> frozenset[int]:
        """Ids of the tokens with a closing brace."""
        vocabulary: dict[str, int] = self._scheduler.tokenizer.get_vocab()
        return frozenset(number for token, number in vocabulary.items() if "}" in token)

    def take(self, req: Req) -> None:
        """Tell the program what a probe that has ended has to say, and forget it."""
        engine = self._scheduler
        payload = engine.certainty.payloads([req])[0] or {}
        probe = self._probes.pop(req)
        engine.programs.probes.ended(probe.parent)
        text = self._decode(req.output_ids)
        reason = req.finished_reason
        cancelled = isinstance(reason, FINISH_ABORT) and reason.message != CUT_MESSAGE
        rows = payload.get("values")
        answer = ProbedReqOutput(
            tenant=probe.asked.tenant,
            program_id=probe.asked.program_id,
            rid=probe.parent.rid,
            at=probe.at,
            text=None if cancelled else text,
            n_tokens=len(req.output_ids),
            is_whole=_closes_box(text) or not isinstance(reason, FINISH_LENGTH),
            confidence=float(np.mean([row[_LIKELIEST] for row in rows])) if rows else None,
        )
        engine.send_control_output(answer, answer)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._scheduler.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _closes_box(text: str) -> bool:
    """Whether a brace closes that `text` has not opened."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return True
    return False
