"""The reward model's own engine: SGLang's server in a process beside this one, on loopback.

Run as a module it is that process, which ends with its parent.
"""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress

from sglang_dynasor.config import CONFIG_VARIABLE, SWITCH_VARIABLE
from sglang_dynasor.models import resolve_model

START_LIMIT_S = 900.0
POLL_S = 0.25
END_LIMIT_S = 5.0
_HOST = "127.0.0.1"


class RewardServer:
    """Starts at once; `wait` until it answers. Only who has `key` may ask."""

    def __init__(self, model_path: str, more_args: str) -> None:
        """`more_args` are further flags of SGLang. Raises as `resolve_model` does."""
        from sglang.srt.utils.network import get_free_port

        path = resolve_model(model_path)
        port = get_free_port()
        self.key = secrets.token_hex(16)
        self.url = f"http://{_HOST}:{port}"
        command = [
            *(sys.executable, "-m", "sglang_dynasor.managers.reward_server"),
            *("--model-path", str(path), "--is-embedding", "--host", _HOST, "--port", str(port)),
            # An idle engine spins; this one would take the time of the one beside it.
            *("--log-level", "error", "--skip-server-warmup", "--sleep-on-idle"),
            *shlex.split(more_args),
        ]
        environment = {name: value for name, value in os.environ.items() if name != CONFIG_VARIABLE}
        environment |= {SWITCH_VARIABLE: "0", "SGLANG_DYNASOR_REWARD_KEY": self.key}
        self._process = subprocess.Popen(command, env=environment)

    def ended(self) -> str:
        """Why it is gone; "" while it runs."""
        code = self._process.poll()
        return "" if code is None else f"its engine has ended with exit code {code}"

    def wait(self) -> None:
        """Wait until it answers. Raises ValueError where it can't start."""
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            if ended := self.ended():
                raise ValueError(f"reward_model_path: {ended} as it started")
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                request = urllib.request.Request(
                    f"{self.url}/health", headers={"Authorization": f"Bearer {self.key}"}
                )
                with urllib.request.urlopen(request, timeout=5):
                    return
            if time.monotonic() > deadline:
                self.close()
                raise ValueError(f"reward_model_path: not started after {START_LIMIT_S:g} s")
            time.sleep(POLL_S)

    def close(self) -> None:
        """End it, and its processes."""
        from sglang.srt.utils import kill_process_tree

        if not self.ended():
            kill_process_tree(self._process.pid, wait_timeout=int(END_LIMIT_S))
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_LIMIT_S)


def main(argv: Sequence[str]) -> None:
    """Serve the model until the parent ends."""
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_itself_when_parent_died

    kill_itself_when_parent_died()
    key = os.environ.pop("SGLANG_DYNASOR_REWARD_KEY")
    run_server(prepare_server_args([*argv, "--api-key", key]))


if __name__ == "__main__":
    main(sys.argv[1:])
