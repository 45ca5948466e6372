"""One token budget for a batch: what certain programs save goes where it helps most."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class _Account:
    granted: int
    wanted: int = 0
    value: float = 0.0


class BudgetPool:
    """Divides a total of tokens among the programs of a batch (paper section 3.2).

    Each program starts with a reserve, in an even split the total by the number of programs. One
    that ends below it gives the rest back; one that is still uncertain requests more, with the
    gain in accuracy per token that it expects (`branch_values`). `serve` then gives the free tokens
    to the requests of highest value, as far as they reach; ties by registration. What is granted
    and what ended programs spent never exceed the total. Amounts are tokens.

    Requests wait for `serve` because values must be compared: were each one served at once, the
    savings would go to whoever asks first. Call it once per turn, after all who would ask have.
    """

    def __init__(self, total_tokens: int) -> None:
        _check_tokens("total_tokens", total_tokens)
        self._free = total_tokens
        self._open: dict[str, _Account] = {}  # in order of registration

    @property
    def free_tokens(self) -> int:
        """Tokens that nobody holds."""
        return self._free

    def granted(self, program_id: str) -> int:
        """Return what an open program may spend in all, its reserve included.

        Raises KeyError for a program that is not open.
        """
        return self._open[program_id].granted

    def register(self, program_id: str, reserve_tokens: int) -> None:
        """Open a program that may spend `reserve_tokens` from now on.

        Raises ValueError where it is open already or the free tokens do not cover the reserve.
        """
        _check_tokens("reserve_tokens", reserve_tokens)
        if program_id in self._open:
            raise ValueError(f"program {program_id!r} is registered already")
        if reserve_tokens > self._free:
            raise ValueError(f"reserve_tokens must be at most {self._free}, not {reserve_tokens}")
        self._free -= reserve_tokens
        self._open[program_id] = _Account(reserve_tokens)

    def request(self, program_id: str, tokens: int, value_per_token: float) -> None:
        """Ask for this many more tokens, with the gain expected of each (0 or more).

        A program has one request: a later one replaces what still waits, one for 0 tokens
        withdraws it. Raises KeyError for a program that is not open and ValueError for an amount
        below 0 or a value that is below 0 or not finite.
        """
        _check_tokens("tokens", tokens)
        if not 0 <= value_per_token < math.inf:
            raise ValueError(f"value_per_token must be 0 or more, not {value_per_token}")
        account = self._open[program_id]
        account.wanted, account.value = tokens, value_per_token

    def serve(self) -> dict[str, int]:
        """Grant the free tokens to the waiting requests; return what each program got now."""
        waiting = [(name, account) for name, account in self._open.items() if account.wanted]
        served: dict[str, int] = {}
        # A stable sort: among equal values the order of registration stays.
        for name, account in sorted(waiting, key=lambda item: -item[1].value):
            tokens = min(account.wanted, self._free)
            if tokens == 0:
                break
            self._free -= tokens
            account.granted += tokens
            account.wanted -= tokens
            served[name] = tokens
        return served

    def settle(self, program_id: str, spent_tokens: int) -> None:
        """Close a program that spent this much: what it saved is free again.

        Raises KeyError for a program that is not open and ValueError where it spent more than it
        was granted.
        """
        _check_tokens("spent_tokens", spent_tokens)
        granted = self._open[program_id].granted
        if spent_tokens > granted:
            raise ValueError(f"spent_tokens must be at most {granted}, not {spent_tokens}")
        del self._open[program_id]
        self._free += granted - spent_tokens


def _check_tokens(field: str, tokens: int) -> None:
    if tokens < 0:
        raise ValueError(f"{field} must be 0 or more, not {tokens}")
