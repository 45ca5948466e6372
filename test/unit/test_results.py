"""The benchmarks behind docs/results.md: what `make results` runs is there and is described."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "results.py"
sys.path.insert(0, str(SCRIPT.parent))

from results import BENCHMARKS  # noqa: E402

PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_every_command_names_a_script_or_module_that_exists() -> None:
    for benchmark in BENCHMARKS:
        first, *rest = benchmark.command.split()
        script = f"python/{rest[0].replace('.', '/')}.py" if first == "-m" else first
        assert (ROOT / script).is_file(), benchmark.command


def test_the_page_names_every_benchmark_and_their_minutes_in_all() -> None:
    contents = PAGE[: PAGE.index("\n## ")]
    table = dict(re.findall(r"^\| (`.*?`) \|.*\| (\d+) \|$", contents, re.MULTILINE))
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert named == {benchmark.name for benchmark in BENCHMARKS}
    assert sum(map(int, table.values())) == sum(benchmark.minutes for benchmark in BENCHMARKS)


def test_every_picture_and_page_the_documents_link_to_exists() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        missing = [
            link for link in links if "://" not in link and not (page.parent / link).exists()
        ]
        assert not missing, f"{page.name}: {missing}"


def test_the_readme_keeps_to_its_length() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 300


def test_a_name_that_is_none_of_them_is_refused_with_those_there_are() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "oracle"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "oracle" in done.stderr and "soak_fcfs" in done.stderr
