"""The certaindex of one program while its branches finish, in any order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter, neg

from sglang_dynasor.certaindex.canonical import canonical_key
from sglang_dynasor.certaindex.entropy import agreement, c_log_c, path_agreement
from sglang_dynasor.certaindex.reward import RewardAggregate, RewardTracker


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
    `remaining` branches, and those excluded from the vote, add up to the program's maximum.
    `leader_wins_ties` says whether the leader still wins where the remaining branches lift another
    group just to its count: ties go to the group with the lowest branch index, and an unfinished
    branch may have a lower one.

    `run` is the number of equal answers that finished last in a row, `run_is_leaders` whether they
    are the leader's; `leader_order` is how many different answers had appeared when the leader's
    first did. `leader_weight` and `total_weight` sum the branches' weights, and `unit_votes` says
    whether each is 1. `reward` is the program's normalised reward (0 to 1), None without a model.
    """

    counts: tuple[int, ...]
    finished: int
    remaining: int
    certaindex: float
    leader_wins_ties: bool
    empty: int
    run: int = 0
    run_is_leaders: bool = False
    leader_order: int = 1
    leader_weight: float = 0.0
    total_weight: float = 0.0
    unit_votes: bool = True
    reward: float | None = None

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
            run=m + (self.run if self.run_is_leaders else 0),
            run_is_leaders=True,
            leader_order=self.leader_order,
            leader_weight=self.leader_weight + m * self._mean_weight,
            total_weight=self.total_weight + m * self._mean_weight,
            unit_votes=self.unit_votes,
            reward=self.reward,
        )

    @property
    def _mean_weight(self) -> float:
        return self.total_weight / sum(self.counts) if self.counts else 1.0


@dataclass(slots=True)
class _Group:
    answer: str
    first_branch: int
    order: int
    count: int = 0
    weight: float = 0.0


class CertaindexTracker:
    """Groups the answers of a program's finished branches (paper section 3.1).

    Each answer costs O(1) amortised: the groups' entropy is kept as a running sum, their sizes in
    a sorted list, and per size the lowest branches that reached it. `key_of` gives the group of an
    answer; `reward` says how a program's rewards become one (paper B.1: mean for MCTS, max for
    Rebase).
    """

    def __init__(
        self,
        max_branches: int,
        key_of: Callable[[str], str] = canonical_key,
        reward: RewardAggregate = "mean",
    ) -> None:
        if max_branches < 1:
            raise ValueError(f"max_branches must be at least 1, not {max_branches}")
        self._max_branches = max_branches
        self._key_of = key_of
        self._rewards = RewardTracker(reward)
        self._groups: dict[str, _Group] = {}
        self._sizes: list[int] = []  # falling
        self._lowest_of_size: dict[int, list[_Group]] = {}
        self._total_weight = 0.0
        self._unit_votes = True
        self._run: tuple[_Group | None, int] = (None, 0)
        self._leader: _Group | None = None
        self._ended: set[int] = set()
        self._excluded = 0
        self._lowest_unfinished = 0
        self._empty = 0
        self._sum_c_log_c = 0

    @property
    def finished(self) -> int:
        """Number of finished branches, those without an answer included."""
        return len(self._ended) - self._excluded

    @property
    def ended(self) -> int:
        """Number of finished and excluded branches."""
        return len(self._ended)

    @property
    def certaindex(self) -> float:
        """H~ over the finished branches, 0 (no evidence) to 1 (all agree)."""
        return agreement(self._sum_c_log_c, self.finished)

    @property
    def leader(self) -> Vote | None:
        """The group with most branches, ties to the lowest branch index; None without answers."""
        return None if self._leader is None else _vote(self._leader)

    def add(
        self, branch: int, answer: str, weight: float = 1.0, reward: float | None = None
    ) -> None:
        """Count the answer of a finished branch; "" where it gave none. `reward` is 0 to 1.

        Raises ValueError where `branch` is not within 0 and max_branches - 1, or came before.
        """
        self._end(branch)
        if reward is not None:
            self._rewards.add(reward)
        key = self._key_of(answer)
        if not key:
            self._empty += 1
            self._run = (None, 0)
            return
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group(answer, branch, len(self._groups) + 1)
            self._sizes.append(0)
        elif branch < group.first_branch:
            group.answer, group.first_branch = answer, branch
        self._grow(group)
        group.weight += weight
        self._total_weight += weight
        self._unit_votes &= weight == 1
        self._run = (group, self._run[1] + 1 if self._run[0] is group else 1)

    def exclude(self, branch: int) -> None:
        """Take note of a branch that was stopped and has no vote: nothing is learnt from it.

        Raises ValueError as `add` does.
        """
        self._end(branch)
        self._excluded += 1

    def _end(self, branch: int) -> None:
        if not 0 <= branch < self._max_branches:
            raise ValueError(f"branch must be below {self._max_branches}, not {branch}")
        if branch in self._ended:
            raise ValueError(f"branch {branch} has already finished")
        self._ended.add(branch)
        while self._lowest_unfinished in self._ended:
            self._lowest_unfinished += 1

    def _grow(self, group: _Group) -> None:
        size = group.count
        # The first of the groups of this size: one more keeps the list falling.
        self._sizes[bisect_left(self._sizes, -size, key=neg)] += 1
        group.count = size + 1
        self._sum_c_log_c += c_log_c(size + 1) - c_log_c(size)
        lowest = self._lowest_of_size.setdefault(size + 1, [])
        lowest.append(group)
        lowest.sort(key=attrgetter("first_branch"))
        del lowest[2:]
        if self._leader is None or _rank(group) < _rank(self._leader):
            self._leader = group

    def votes(self) -> list[Vote]:
        """Return the groups by falling count, ties by lowest first branch; no empty answers."""
        return [_vote(group) for group in sorted(self._groups.values(), key=_rank)]

    def evidence(self) -> Evidence:
        """Return what a stop rule may know now."""
        leader = self._leader
        return Evidence(
            counts=tuple(self._sizes),
            finished=self.finished,
            remaining=self._max_branches - self.ended,
            certaindex=self.certaindex,
            leader_wins_ties=self._leader_wins_ties(),
            empty=self._empty,
            run=self._run[1],
            run_is_leaders=self._run[0] is leader and leader is not None,
            leader_order=leader.order if leader else 1,
            leader_weight=leader.weight if leader else 0.0,
            total_weight=self._total_weight,
            unit_votes=self._unit_votes,
            reward=self._rewards.value,
        )

    def _leader_wins_ties(self) -> bool:
        # Only the largest rivals can tie with a leader that nobody can overtake. Without rivals
        # that is a new group, whose index is at best the lowest unfinished one.
        leader = self._leader
        if leader is None or leader.first_branch > self._lowest_unfinished:
            return False
        if len(self._sizes) < 2:
            return True
        # Whoever reached the runner-up's size and has left it is the leader: two names suffice.
        rivals = self._lowest_of_size[self._sizes[1]]
        return all(leader.first_branch <= group.first_branch for group in rivals)


def _rank(group: _Group) -> tuple[int, int]:
    return (-group.count, group.first_branch)


def _vote(group: _Group) -> Vote:
    return Vote(group.answer, group.count, group.weight, group.first_branch)
