"""What a program may spend: its rounds share it out, and more may be granted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenCap:
    """`limit` tokens in all, None for no cap; `longest` is the longest branch so far."""

    limit: int | None
    spent: int = 0
    longest: int = 0
    refused: bool = False

    def spend(self, tokens: int) -> None:
        """Count an ended branch."""
        self.spent += tokens
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
        """How many of these branches could be as long as the longest so far.

        One that is cut short rarely has an answer: fewer whole ones are worth more.
        """
        if self.limit is None:
            return branches
        return min(branches, self.left // max(self.longest, 1))

    def share(self, branches: int) -> int | None:
        """Tokens each of these branches may have, None for no cap."""
        return None if self.limit is None else self.left // branches

    @property
    def left(self) -> int:
        """Tokens that are not spent, 0 without a cap."""
        return max(0, (self.limit or 0) - self.spent)
