"""One offline engine and one HTTP server for the whole session, each started when first asked for.

Both sleep while idle, so the one that has nothing to do leaves the cores to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.servers import running_server

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Upstream's Engine.shutdown kills every child of this process, the shared engine's too.
    items.sort(key=lambda item: item.get_closest_marker("own_engine") is None)


@pytest.fixture(scope="session")
def engine() -> Iterator[DynasorEngine]:
    """The offline engine: embedded model, draws keyed by request, a small KV pool."""
    from sglang_dynasor import DynasorEngine
    from sglang_dynasor.models import default_model_path
    from support.pool import POOL_TOKENS

    engine = DynasorEngine(
        model_path=str(default_model_path()),
        sampling_backend="keyed",
        random_seed=1,
        max_total_tokens=POOL_TOKENS,
        sleep_on_idle=True,
    )
    yield engine
    engine.shutdown()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real `launch_server` with the embedded model."""
    log: Path = tmp_path_factory.mktemp("server") / "server.log"
    flags = ("--sampling-backend", "keyed", "--random-seed", "1", "--sleep-on-idle")
    with running_server(log, *flags, "--max-total-tokens", "32768") as url:
        yield url
