"""Programs that a client drives itself: its requests only say that they belong together."""

from __future__ import annotations

from pydantic import Field

from sglang_dynasor.config import DynasorConfig
from sglang_dynasor.programs.params import MAX_BRANCHES, Envelope, Params, RequestTraits, Settings


class ClientDrivenParams(Params):
    """Fields of `algorithm: none`."""

    max_branches: int | None = Field(
        None, ge=1, le=MAX_BRANCHES, description="requests the program is going to send, 1 to 512"
    )

    def check(self, envelope: Envelope) -> None:
        for field in ("deadline_ms", "max_total_tokens"):
            if getattr(envelope, field) is not None:
                raise ValueError(f"{field}: needs an algorithm, e.g. self_consistency")
        if envelope.mode == "shadow":
            raise ValueError("mode: shadow needs an algorithm, e.g. self_consistency")

    def resolve(
        self, envelope: Envelope, config: DynasorConfig, request: RequestTraits
    ) -> Settings:
        return Settings(
            max_branches=self.max_branches or 0,
            measured=self.token_certainty,
            token_certainty=self.token_certainty,
        )
