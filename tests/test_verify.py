"""`magi verify` on the golden folder: every case of every family within its tolerance, and outputs from inputs alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from magi_core.errors import MagiError
from magi_core.golden import Golden, compare
from magi_core.verify.families import FAMILIES
from magi_core.verify.report import Row, verify


def test_every_recorded_output_is_equal(golden: Golden) -> None:
    rows = verify(golden.folder)
    failed = [row for row in rows if not row.passed]
    assert not failed
    assert {row.case.split("/")[0] for row in rows} == {*FAMILIES, "schedules", "text_cleaning"}
    compared = {(row.case, row.output) for row in rows}
    for case in golden.cases:
        if case.family in FAMILIES.keys() - {"dit_forward", "dispatcher"}:  # whose inner values have tests of their own
            assert {(case.id, name) for name in case.outputs} <= compared


def test_outputs_are_written_where_only_inputs_are_given(golden: Golden, tmp_path: Path) -> None:
    given, written = tmp_path / "given", tmp_path / "written"
    shutil.copytree(golden.folder, given, ignore=shutil.ignore_patterns("loops", "pipeline", "dispatcher"))
    manifest = json.loads((given / "manifest.json").read_text())
    for case in manifest["cases"]:
        case.pop("outputs", None)
        case.pop("tolerance", None)
        path = given / case["file"]
        if path.suffix == ".safetensors" and path.is_file():
            with safe_open(path, "pt") as file:
                inputs = {name: file.get_tensor(name) for name in file.keys() if name.startswith("in.")}  # noqa: SIM118
            path.unlink()
            save_file(inputs, path)
    (given / "manifest.json").write_text(json.dumps(manifest))
    cleaning = json.loads((given / "text_cleaning.json").read_text())
    (given / "text_cleaning.json").write_text(json.dumps([{"input": entry["input"]} for entry in cleaning]))

    assert not [row for row in verify(given, written) if row.allowed and not row.passed]

    assert json.loads((written / "text_cleaning.json").read_text()) == cleaning
    decoded = golden.case("vae/a_decode_T1")
    tensors = load_file(written / decoded.file.relative_to(golden.folder))
    assert list(tensors) == ["out.pixels"]
    assert compare(tensors["out.pixels"], decoded.outputs["pixels"])[0] <= decoded.tolerance["pixels"].max_abs


def test_a_folder_that_leaves_things_out(golden: Golden, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No tolerance, no meta, an unknown family, a path that leads out: shown, refused or left out, and never a crash."""
    case = golden.case("vae/a_decode_T1")
    entry = {"id": case.id, "config": case.config, "file": str(case.file.relative_to(golden.folder))}
    weights = golden.weights_path(case.config).parent
    shutil.copytree(weights, tmp_path / weights.relative_to(golden.folder))
    (tmp_path / "vae").mkdir()
    shutil.copy(case.file, tmp_path / entry["file"])

    def rows(*cases: dict[str, object]) -> list[Row]:
        configs = {case.config: golden.config_document(case.config)}
        (tmp_path / "manifest.json").write_text(json.dumps({"configs": configs, "cases": cases}))
        return verify(tmp_path)

    assert [(row.output, row.passed) for row in rows(entry)] == [("pixels", True)]
    assert rows(entry | {"outputs": {"pixels": {}}, "id": "sound/a"}) == [] and "sound" in caplog.text
    (row,) = rows(entry | {"id": "loops/a"})
    assert not row.passed and "loops/a cannot be computed" in caplog.text
    with pytest.raises(MagiError, match="leads out"):
        rows(entry | {"file": "vae/../../x.safetensors"})
    with pytest.raises(MagiError, match="name another folder"):
        verify(tmp_path, tmp_path)
