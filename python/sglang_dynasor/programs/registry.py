"""The algorithms by name: for one of your own, a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_dynasor.programs.beam import BeamParams, beam, dvts
from sglang_dynasor.programs.best_of_n import BestOfNParams, best_of_n
from sglang_dynasor.programs.chain_of_thought import ChainOfThought
from sglang_dynasor.programs.chain_of_thought_params import ChainOfThoughtParams
from sglang_dynasor.programs.client_driven import ClientDrivenParams
from sglang_dynasor.programs.mcts import Mcts, MctsParams
from sglang_dynasor.programs.params import Params
from sglang_dynasor.programs.protocol import ReasoningProgram
from sglang_dynasor.programs.rebase import RebaseParams, rebase
from sglang_dynasor.programs.self_consistency import SelfConsistency
from sglang_dynasor.programs.self_consistency_params import SelfConsistencyParams


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`build` makes the program from what `params.resolve` returns; None: its client drives it."""

    params: type[Params]
    build: Callable[[Any], ReasoningProgram] | None


ALGORITHMS: dict[str, Algorithm] = {
    "none": Algorithm(ClientDrivenParams, None),
    "self_consistency": Algorithm(SelfConsistencyParams, SelfConsistency),
    "cot": Algorithm(ChainOfThoughtParams, ChainOfThought),
    "best_of_n": Algorithm(BestOfNParams, best_of_n),
    "rebase": Algorithm(RebaseParams, rebase),
    "mcts": Algorithm(MctsParams, Mcts),
    "beam": Algorithm(BeamParams, beam),
    "dvts": Algorithm(BeamParams, dvts),
}
