"""Made-up searches: steps, leaves and rewards that are told by the text of a path."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

from paper_trees import RIGHT, STEP_STOP, Tree, TreeScript, reward_of, won
from sglang_dynasor.platforms.virtual_clock.script import Asked

TREE = Tree(
    prompt_tokens=40,
    depth=3,
    p_right=0.7,
    step_tokens=20.0,
    step_sigma=0.3,
    separation=2.0,
    wrong_answers=5,
    wrong_zipf=1.0,
)


def walk(script: TreeScript, program: str = "p") -> tuple[str, int]:
    """A path, step by step, to its leaf: its text and its tokens."""
    path, tokens = "", 0
    while True:
        sample = script.sample(Asked(program, "0", path, tokens, (STEP_STOP,)))
        path += "." * max(0, sample.n_tokens - len(sample.text)) + sample.text
        tokens += sample.n_tokens
        if sample.ends:
            return path, tokens


def test_a_path_has_as_many_steps_as_its_problem_and_ends_with_an_answer() -> None:
    path, _ = walk(TreeScript({"p": TREE}))
    assert path.count(STEP_STOP) == TREE.depth - 1
    assert "\\boxed{" in path


def test_as_many_paths_are_right_as_the_problem_says_step_by_step_or_at_once() -> None:
    script = TreeScript({"p": TREE})
    paths = [walk(script)[0] for _ in range(1500)]
    whole = [script.sample(Asked("p", "0", "", 0)).text for _ in range(1500)]
    for texts in (paths, whole):
        right = statistics.fmean(text.endswith(f"{{{RIGHT}}}") for text in texts)
        assert abs(right - TREE.p_right) < 0.04
    wrong_after_wrong = [path for path in paths if "w" in path.split(STEP_STOP)[0]]
    assert wrong_after_wrong
    assert not any(path.endswith(f"{{{RIGHT}}}") for path in wrong_after_wrong)


def test_rewards_tell_right_paths_from_wrong_ones_as_far_as_they_are_apart() -> None:
    script = TreeScript({"p": TREE})
    leaves = [script.sample(Asked("p", "0", "", 0)).text for _ in range(800)]
    right = [reward_of("", text) for text in leaves if text.endswith(f"{{{RIGHT}}}")]
    wrong = [reward_of("", text) for text in leaves if not text.endswith(f"{{{RIGHT}}}")]
    above = statistics.fmean(a > b for a in right for b in wrong)
    assert 0.88 < above < 0.96  # two deviations apart: 0.92


def test_the_same_path_has_the_same_children_whoever_asks_when() -> None:
    one, other = TreeScript({"p": TREE, "q": TREE}), TreeScript({"p": TREE, "q": TREE})
    walk(one, "q")
    assert [walk(one)[0] for _ in range(5)] == [walk(other)[0] for _ in range(5)]


def test_more_leaves_win_more_votes() -> None:
    rng = random.Random(0)
    hard = replace(TREE, p_right=0.45)
    one, many = (statistics.fmean(won(hard, n, rng) for _ in range(400)) for n in (1, 15))
    assert one < many - 0.1
