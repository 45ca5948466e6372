"""`python -m sglang_dynasor.launch_server`: SGLang's server with programs, or a clear refusal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Start the server. Flags beginning with `--dynasor-` are ours, all others are SGLang's."""
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    from sglang_dynasor.config import add_flags, from_flags
    from sglang_dynasor.handshake import HandshakeError, check_this_process

    parser = argparse.ArgumentParser(
        prog="python -m sglang_dynasor.launch_server",
        description="SGLang server that knows reasoning programs. "
        "Every flag of `sglang serve` works here too; these are added:",
        allow_abbrev=False,
    )
    add_flags(parser)
    ours, upstream_argv = parser.parse_known_args(argv)
    try:
        from_flags(ours).to_environment()
        load_plugins()
        check_this_process()
        run_server(prepare_server_args(upstream_argv))
    except (HandshakeError, ValueError) as error:
        sys.exit(f"sglang-dynasor refuses to start: {error}")
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
