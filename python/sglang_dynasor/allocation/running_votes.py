"""Votes of branches that still run, where finished ones have given the same answer.

Branches share a first guess and leave it together, so what running ones agree on says little. An
answer that some have reached to the end is another matter: a running branch whose latest probe
gives it mostly stays there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sglang_dynasor.certaindex import Evidence, path_agreement

# Votes of finished branches from which those of running ones confirm an answer.
CONFIRMED_FROM = 4


def with_running_votes(
    evidence: Evidence, finished: Mapping[str, int], running: Mapping[str, int]
) -> Evidence | None:
    """Return `evidence` with the branches that run and confirm an answer counted as finished.

    `finished` are the votes of each group, `running` the branches whose latest probe gave its
    answer. None where no branch confirms anything, or where the answer with most votes is not the
    one that strictly leads among the finished branches. As long as one of them runs, one branch at
    least may still change the vote.
    """
    confirming = {
        group: running.get(group, 0) for group, votes in finished.items() if votes >= CONFIRMED_FROM
    }
    confirmed = sum(confirming.values())
    if not confirmed:
        return None
    votes = {group: count + confirming.get(group, 0) for group, count in finished.items()}
    leader = max(votes, key=votes.__getitem__)
    if any(count >= finished[leader] for group, count in finished.items() if group != leader):
        return None
    counts = (votes.pop(leader), *sorted(votes.values(), reverse=True))
    return replace(
        evidence,
        counts=counts,
        finished=evidence.finished + confirmed,
        remaining=max(1, evidence.remaining - confirmed),
        certaindex=path_agreement((*counts, *[1] * evidence.empty)),
        leader_wins_ties=False,
    )
