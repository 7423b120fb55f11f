"""Our Triton kernels: their numbers in Triton's interpreter, and that they compile for GPUs that are not at hand.

Both run in a process of their own: whether Triton interprets is settled when it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (pip install 'comfyui-magi[kernels]')"
)


@pytest.mark.parametrize(
    ("cases", "interpret"),
    [("triton_numbers.py", "1"), ("int8_numbers.py", "1"), ("fused_numbers.py", "1"), ("triton_compiles.py", "0")],
)
def test_in_a_process_of_its_own(cases: str, interpret: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / cases)]
    settings = {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        command, cwd=HERE.parents[1], env=os.environ | settings, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
