"""What a program needs now: the one record that travels from it to the order of the queue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What the order should know of a program.

    `certaindex` (0 to 1) is how certain it is, `worth` what its needed nodes are expected to add to
    P(the answer is right) next to the first nodes of a program (1), and `work` how many nodes it
    expects to start beyond those in flight.

    Whoever runs the program adds the rest: `needed` is how many nodes must be in flight now (None:
    all that are sent), `values` what each offered node would add to P(the answer is right),
    falling.
    """

    certaindex: float = 0.0
    worth: float = 1.0
    work: float = 0.0
    needed: int | None = None
    values: tuple[float, ...] = ()
