"""`sglang-dynasor chat`: talk to a server and watch its chains of thought being probed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from sglang_dynasor.managers.program_news import MARK

_EFFORTS = ("none", "mild", "low", "mid", "high", "crazy")
_HELP = "exit or quit ends; effort LEVEL and reset change this conversation"


def add_parser(commands: Any) -> None:
    """Add the subcommand to what `ArgumentParser.add_subparsers` returned."""
    parser = commands.add_parser("chat", help="terminal chat that shows probes and exits live")
    parser.add_argument("--base-url", default="http://localhost:30000/v1")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--model", help="default: the first the server lists")
    parser.add_argument("--saving-effort", choices=_EFFORTS)
    parser.add_argument("--probe-interval", type=int, help="tokens between probes")
    parser.add_argument("--window", type=int, help="probes that must agree")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--max-tokens", type=int, help="default: the server's")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Chat until the input ends. Raises ValueError where the server can't be reached."""
    console = Console(highlight=False)
    fields = {
        name: value
        for name in ("saving_effort", "probe_interval", "window")
        if (value := getattr(options, name)) is not None
    }
    headers = {"Authorization": f"Bearer {options.api_key}"}
    with httpx.Client(base_url=options.base_url.rstrip("/"), headers=headers, timeout=None) as http:
        model = options.model or _first_model(http, options.base_url)
        console.print(f"{model} at {options.base_url}; {_HELP}", style="dim")
        messages: list[dict[str, str]] = []
        for line in _lines(console):
            command, _, argument = line.partition(" ")
            if command in ("exit", "quit"):
                break
            if command == "help":
                console.print(_HELP, style="dim")
            elif command == "reset":
                messages.clear()
            elif command == "effort" and argument in _EFFORTS:
                fields = {"saving_effort": argument}
            elif line:
                messages.append({"role": "user", "content": line})
                body = {
                    "model": model,
                    "messages": messages,
                    "temperature": options.temperature,
                    "max_tokens": options.max_tokens,
                    "stream": True,
                    "chat_template_kwargs": {"enable_thinking": True},
                    "dynasor": {"algorithm": "cot", **fields},
                }
                answer = _stream(console, http, body)
                messages.append({"role": "assistant", "content": answer})
    return 0


def _lines(console: Console) -> Iterator[str]:
    while True:
        try:
            yield console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return


def _first_model(http: httpx.Client, base_url: str) -> str:
    try:
        reply = http.get("/models").raise_for_status().json()
        return str(reply["data"][0]["id"])
    except (httpx.HTTPError, KeyError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(f"--base-url: no model at {base_url}: {error}") from None


def _stream(console: Console, http: httpx.Client, body: dict[str, Any]) -> str:
    """Show one answer as it comes; returns what the model has said behind its thought."""
    said: list[str] = []
    report: dict[str, Any] | None = None
    with http.stream("POST", "/chat/completions", json=body) as reply:
        if reply.status_code != httpx.codes.OK:
            console.print(escape(reply.read().decode(errors="replace")), style="red")
            return ""
        for line in reply.iter_lines():
            if line.startswith(MARK):
                _show_news(console, json.loads(line.removeprefix(MARK)))
            elif line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                report = (chunk.get("sglext") or {}).get("dynasor", report)
                for choice in chunk.get("choices", ()):
                    _show(console, choice.get("delta") or {}, said)
    console.print()
    if report is not None:
        _show_report(console, report)
    return "".join(said).rpartition("</think>")[2].strip()


def _show(console: Console, delta: dict[str, Any], said: list[str]) -> None:
    if thought := delta.get("reasoning_content"):
        console.print(escape(thought), end="", style="dim")
    if text := delta.get("content"):
        said.append(text)
        console.print(escape(text), end="")


def _show_news(console: Console, news: dict[str, Any]) -> None:
    probe = news.get("probe")
    if probe is None:
        return
    doubt = " (doubted)" if probe["hedged"] else ""
    confidence = probe["confidence"]
    sure = "" if confidence is None else f" p={confidence:.2f}"
    answer = escape(probe["answer"] or "no answer")
    console.print(f"\n  at {probe['at']} tokens: {answer}{sure}{doubt}", style="cyan")


def _show_report(console: Console, report: dict[str, Any]) -> None:
    tokens = report["tokens"]
    console.print(
        f"{report['stop_reason']}, certaindex {report['certaindex']:.2f}, answer "
        f"{escape(report['answer'] or 'none')}; {tokens['branch']} tokens and {tokens['probe']} of "
        f"{report['rounds']} probes",
        style="green",
    )
    for what, reason in report["inactive"].items():
        console.print(f"inactive: {escape(what)}: {escape(reason)}", style="yellow")
