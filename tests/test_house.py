"""The house keeps its rules: arrows point down, nothing of ComfyUI inside, a cheap import, nothing that runs strangers' code."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "magi_core").rglob("*.py"))

ABOVE = {
    "kernels": {"model", "denoise", "pipeline", "generation", "cli", "training", "evaluation", "checkpoint", "verify"},
    "model": {"denoise", "pipeline", "generation", "cli", "training", "evaluation", "checkpoint", "verify", "vae"},
    "vae": {"model", "denoise", "pipeline", "generation", "cli", "training", "evaluation", "checkpoint", "verify"},
    "text": {"model", "denoise", "pipeline", "generation", "cli", "training", "evaluation", "checkpoint", "verify"},
    "checkpoint": {"denoise", "pipeline", "generation", "cli", "training", "evaluation", "verify"},
    "lora": {"denoise", "pipeline", "parallel", "generation", "cli", "training", "evaluation", "verify", "vae"},
    "denoise": {"pipeline", "generation", "cli", "training", "evaluation", "checkpoint", "verify", "vae"},
    "training": {"pipeline", "generation", "cli", "verify"},
    "evaluation": {"training", "cli", "verify"},
    "worlds": {
        "evaluation",
        "training",
        "model",
        "denoise",
        "pipeline",
        "generation",
        "cli",
        "checkpoint",
        "verify",
        "vae",
    },
}
"""Rooms of magi_core, and those above them, which they must not import."""


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at the top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ABOVE)
def test_arrows_point_down(room: str) -> None:
    files = [path for path in FILES if path.relative_to(ROOT / "magi_core").parts[0] == room]
    assert files
    for path in files:
        used = {name.split(".")[1] for name in imports(path) if name.startswith("magi_core.")}
        assert not used & ABOVE[room], path


def test_rooms_stand_one_above_the_other() -> None:
    """No two of them need each other, however many lie between."""
    needs: dict[str, set[str]] = {}
    for path in FILES:
        room = path.relative_to(ROOT / "magi_core").parts[0].removesuffix(".py")
        used = {name.split(".")[1] for name in imports(path) if name.startswith("magi_core.")}
        needs.setdefault(room, set()).update(used - {room})
    order = list(TopologicalSorter({room: used for room, used in needs.items() if room != "__init__"}).static_order())
    assert order.index("kernels") < order.index("model") < order.index("memory") < order.index("cost")


def test_the_core_knows_nothing_of_comfyui() -> None:
    roots = {name.split(".")[0] for path in FILES for name in imports(path)}
    assert not roots & {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "nodes", "execution"}


def test_nothing_runs_code_from_files_or_shells() -> None:
    roots = {name for path in FILES for name in imports(path)}
    assert not {name.split(".")[0] for name in roots} & {"pickle", "subprocess", "shelve", "marshal", "ctypes"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load", "os.system", "print"}, (path, node.lineno)


def test_importing_the_package_is_cheap() -> None:
    heavy = (
        "import magi_core, sys; print([m for m in ('transformers', 'av', 'cv2', 'bs4', 'tqdm') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(("folder", "warned"), [("comfyui-magi", False), ("magi-main (1)", True), ("图", True)])
def test_the_pack_imports_where_comfyui_is_absent(
    folder: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's page fetches nothing from folders whose name a URL quotes; who chose such a one is told."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    here = tmp_path / folder
    here.symlink_to(ROOT, target_is_directory=True)
    spec = importlib.util.spec_from_file_location(
        "magi_pack", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    assert spec and spec.loader
    pack = importlib.util.module_from_spec(spec)
    sys.modules["magi_pack"] = pack
    try:
        spec.loader.exec_module(pack)
        assert callable(pack.comfy_entrypoint)
        assert (ROOT / pack.WEB_DIRECTORY).is_dir()
        assert ("rename it to comfyui-magi" in caplog.text) == warned
    finally:
        for name in [name for name in sys.modules if name == "magi_pack" or name.startswith("magi_pack.")]:
            del sys.modules[name]
