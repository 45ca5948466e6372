"""Every snippet of the README runs as it stands, but for the address of the server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sglang_dynasor.config import DynasorConfig

if TYPE_CHECKING:
    from sglang_dynasor import DynasorEngine

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def _snippet(language: str, mark: str) -> str:
    found = [code for name, code in SNIPPETS if name == language and mark in code]
    assert len(found) == 1, f"README has {len(found)} {language} snippets with {mark!r}"
    return found[0]


def _run_python(code: str, server_url: str = "") -> None:
    code = code.replace("http://localhost:30000", server_url)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_the_openai_client_snippet_prints_an_answer_and_why_it_stopped(
    server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _run_python(_snippet("python", "import OpenAI"), server_url)
    lines = capsys.readouterr().out.splitlines()
    tokens, stop_reason = lines[-1].split()
    assert int(tokens) > 0
    assert stop_reason in ("certain", "decided", "completed")


def test_the_curl_snippet_answers_with_a_program_report(server_url: str) -> None:
    command = _snippet("bash", "curl").replace("http://localhost:30000", server_url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert '"dynasor":{' in done.stdout, done.stdout + done.stderr


def test_the_server_snippet_names_the_embedded_model_and_a_module_that_exists() -> None:
    lines = _snippet("bash", "--port 30000").splitlines()
    path = lines[0].replace("python -c", f"{sys.executable} -c")
    done = subprocess.run(
        ["bash", "-c", f'{path}; echo "$MODEL"'], capture_output=True, text=True, timeout=120
    )
    assert (Path(done.stdout.strip()) / "config.json").is_file(), done.stderr
    assert "-m sglang_dynasor.launch_server" in lines[1]


def test_the_offline_snippet_prints_one_line_per_question(
    engine: DynasorEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _share_engine(engine, monkeypatch)
    _run_python(_snippet("python", "run_batch"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(int(line.split()[-1]) > 0 for line in lines)


def test_the_lang_snippet_runs_as_one_program(
    engine: DynasorEngine,
    server_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _share_engine(engine, monkeypatch)
    _run_python(_snippet("python", "import sglang as sgl"), server_url)
    assert capsys.readouterr().out.strip()


def test_the_calibrate_snippet_writes_a_profile_that_the_server_takes(tmp_path: Path) -> None:
    record, calibrate, serve = _snippet("bash", "calibrate").splitlines()
    trace = ROOT / "test" / "data" / "tiny_reasoner_300x40.jsonl.gz"
    command = (
        calibrate.replace("sglang-dynasor", f"{sys.executable} -m sglang_dynasor.cli")
        .replace("traces.jsonl.gz", str(trace))
        .replace("profile.json", str(tmp_path / "profile.json"))
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    config = DynasorConfig.parse({"profile": str(tmp_path / "profile.json")})
    assert config.max_branches == 16
    assert "--record traces.jsonl.gz" in record and "--dynasor-profile profile.json" in serve


def test_the_generated_tables_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "readme_tables.py"), "--check"]
    assert subprocess.run(command, timeout=120).returncode == 0, "run tools/readme_tables.py"


def _share_engine(engine: DynasorEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a snippet that starts and ends an engine use the session's instead."""
    import sglang_dynasor.engine

    monkeypatch.setattr(sglang_dynasor.engine, "DynasorEngine", lambda **_: engine)
    monkeypatch.setattr(engine, "shutdown", lambda: None)
