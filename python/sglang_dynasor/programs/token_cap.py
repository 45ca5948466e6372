"""What a program may spend: its rounds share it out, and more may be granted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenCap:
    """`limit` tokens in all, None for no cap; `longest` is the longest branch so far."""

    limit: int | None
    spent: int = 0
    ended: int = 0
    longest: int = 0
    refused: bool = False

    def spend(self, tokens: int) -> None:
        """Count an ended branch."""
        self.spent += tokens
        self.ended += 1
        self.longest = max(self.longest, tokens)

    def grant(self, tokens: int) -> None:
        """Take what was asked for; 0: there is no more to be had."""
        if self.limit is None or tokens == 0:
            self.refused = True
        else:
            self.limit += tokens

    def missing(self, branches: int) -> int:
        """Tokens worth asking for before this many further branches are started."""
        if self.limit is None or self.refused:
            return 0
        return max(0, branches * self.longest - self.left)

    def fits(self, branches: int) -> int:
        """How many of these branches should be started: one that is cut short rarely answers.

        The first runs alone, for it shows how long they get. Later ones are few enough to be as
        long as the longest; the last tokens of all are shared out by the mean.
        """
        if self.limit is None:
            return branches
        if not self.longest:
            return min(1, self.left)
        if not self.refused:
            return min(branches, self.left // self.longest)
        return min(branches, round(self.left * self.ended / self.spent))

    def share(self, branches: int) -> int | None:
        """Tokens each of these branches may have, None for no cap."""
        return None if self.limit is None else self.left // branches

    @property
    def left(self) -> int:
        """Tokens that are not spent, 0 without a cap."""
        return max(0, (self.limit or 0) - self.spent)
