"""The certaindex of one program while its branches finish, in any order."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.entropy import agreement, c_log_c, path_agreement


@dataclass(frozen=True, slots=True)
class Vote:
    """One group of equal answers.

    `answer` is spelled as its lowest branch spelled it (`first_branch`, the index that decides
    ties); `count` is the number of branches and `weight` the sum of their weights.
    """

    answer: str
    count: int
    weight: float
    first_branch: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a stop rule may know about a program.

    `counts` are the sizes of the groups, leader first; an empty answer is in no group, only in
    `empty`, but each lowers `certaindex` (0 to 1) like a group of its own. `finished` and
    `remaining` branches add up to the program's maximum. `leader_wins_ties` says whether the
    leader still wins where the remaining branches lift another group just to its count: ties go
    to the group with the lowest branch index, and an unfinished branch may have a lower one.
    """

    counts: tuple[int, ...]
    finished: int
    remaining: int
    certaindex: float
    leader_wins_ties: bool
    empty: int

    def after_agreement(self, m: int) -> Evidence:
        """Return the evidence once the `m` lowest unfinished branches have voted for the leader.

        Without a leader they agree on a new answer. Where branches beyond them had finished
        first, `leader_wins_ties` may err, and only towards False. Raises ValueError where `m` is
        not within 0 and `remaining`.
        """
        if not 0 <= m <= self.remaining:
            raise ValueError(f"m must be between 0 and {self.remaining}, not {m}")
        if m == 0:
            return self
        leader, *others = self.counts or (0,)
        counts = (leader + m, *others)
        return Evidence(
            counts=counts,
            finished=self.finished + m,
            remaining=self.remaining - m,
            certaindex=path_agreement((*counts, *[1] * self.empty)),
            leader_wins_ties=self.leader_wins_ties or not self.counts,
            empty=self.empty,
        )


@dataclass(slots=True)
class _Group:
    answer: str
    first_branch: int
    count: int = 0
    weight: float = 0.0


class CertaindexTracker:
    """Groups the answers of a program's finished branches (paper section 3.1).

    Each answer costs O(1) amortised: the groups' entropy is kept as a running sum.
    """

    def __init__(self, max_branches: int) -> None:
        if max_branches < 1:
            raise ValueError(f"max_branches must be at least 1, not {max_branches}")
        self._max_branches = max_branches
        self._groups: dict[str, _Group] = {}
        self._leader: _Group | None = None
        self._finished: set[int] = set()
        self._lowest_unfinished = 0
        self._empty = 0
        self._sum_c_log_c = 0

    @property
    def finished(self) -> int:
        """Number of finished branches, those without an answer included."""
        return len(self._finished)

    @property
    def certaindex(self) -> float:
        """H~ over the finished branches, 0 (no evidence) to 1 (all agree)."""
        return agreement(self._sum_c_log_c, len(self._finished))

    @property
    def leader(self) -> Vote | None:
        """The group with most branches, ties to the lowest branch index; None without answers."""
        return None if self._leader is None else _vote(self._leader)

    def add(self, branch: int, answer: str, weight: float = 1.0) -> None:
        """Count the answer of a finished branch; "" where it gave none.

        Raises ValueError where `branch` is not within 0 and max_branches - 1, or came before.
        """
        if not 0 <= branch < self._max_branches:
            raise ValueError(f"branch must be below {self._max_branches}, not {branch}")
        if branch in self._finished:
            raise ValueError(f"branch {branch} has already finished")
        self._finished.add(branch)
        while self._lowest_unfinished in self._finished:
            self._lowest_unfinished += 1
        key = canonical_key(answer)
        if not key:
            self._empty += 1
            return
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(answer, branch)
        elif branch < group.first_branch:
            group.answer, group.first_branch = answer, branch
        group.count += 1
        group.weight += weight
        self._sum_c_log_c += c_log_c(group.count) - c_log_c(group.count - 1)
        if self._leader is None or _rank(group) < _rank(self._leader):
            self._leader = group

    def votes(self) -> list[Vote]:
        """Return the groups by falling count, ties by lowest first branch; no empty answers."""
        return [_vote(group) for group in sorted(self._groups.values(), key=_rank)]

    def evidence(self) -> Evidence:
        """Return what a stop rule may know now."""
        counts = sorted([group.count for group in self._groups.values()], reverse=True)
        return Evidence(
            counts=tuple(counts),
            finished=len(self._finished),
            remaining=self._max_branches - len(self._finished),
            certaindex=self.certaindex,
            leader_wins_ties=self._leader_wins_ties(counts[1] if len(counts) > 1 else 0),
            empty=self._empty,
        )

    def _leader_wins_ties(self, rival_count: int) -> bool:
        # Only the largest rivals can tie with a leader that nobody can overtake. Without rivals
        # that is a new group, whose index is at best the lowest unfinished one.
        leader = self._leader
        if leader is None or leader.first_branch > self._lowest_unfinished:
            return False
        rivals = [group for group in self._groups.values() if group.count == rival_count]
        return all(leader.first_branch <= group.first_branch for group in rivals)


def _rank(group: _Group) -> tuple[int, int]:
    return (-group.count, group.first_branch)


def _vote(group: _Group) -> Vote:
    return Vote(group.answer, group.count, group.weight, group.first_branch)
