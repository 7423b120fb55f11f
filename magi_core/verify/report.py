"""Walk through a golden folder: compute, compare, write, and print one row an output."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from magi_core.files import atomic_write
from magi_core.golden import Golden, Tolerance, compare
from magi_core.verify import documents, families

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One compared output. ``allowed`` is None where nothing was recorded: then there is nothing to pass or fail."""

    case: str
    output: str
    max_abs: float
    rel_rms: float
    allowed: Tolerance | None

    @property
    def passed(self) -> bool:
        return self.allowed is None or (self.max_abs <= self.allowed.max_abs and self.rel_rms <= self.allowed.rel_rms)


def verify(folder: Path, write: Path | None = None, on_row: Callable[[Row], None] | None = None) -> list[Row]:
    """Compute every case of ``folder`` and compare with what it records.

    ``write``: a folder that receives the computed ``out.*`` tensors (same file and key names) and completed JSON documents,
    also where ``folder`` holds only inputs. ``on_row`` is told each row as soon as it is known.
    Raises MagiError when the folder is no golden folder or cannot be written.
    """
    rows = []
    for row in _rows(Golden(folder), write):
        rows.append(row)
        if on_row:
            on_row(row)
    return rows


def _rows(golden: Golden, write: Path | None) -> Iterator[Row]:
    for case in golden.cases:
        compute = families.FAMILIES.get(case.family)
        if compute is None:
            log.info("%s: no verification of the family %s", case.id, case.family)
            continue
        computed = compute(golden, case)
        if write is not None:
            _write_tensors(Path(write) / case.file.relative_to(golden.folder), computed)
        for name, tensor in computed.items():
            if name in case.outputs:
                error = compare(tensor, case.outputs[name])
                yield Row(case.id, name, *error, case.tolerance.get(name, Tolerance(0.0, 0.0)))
            else:
                yield Row(case.id, name, 0.0, 0.0, None)
    for name, complete in documents.DOCUMENTS.items():
        if not (golden.folder / name).is_file():
            continue
        recorded = golden.json(name)
        computed_document = complete(golden, recorded)
        if write is not None:
            with atomic_write(Path(write) / name) as temporary:
                temporary.write_text(json.dumps(computed_document, ensure_ascii=True), encoding="utf-8")
        for part, difference in documents.differences(computed_document, recorded).items():
            yield Row(name.removesuffix(".json"), part, difference, 0.0, Tolerance(documents.TIME_TOLERANCE, 0.0))


def _write_tensors(target: Path, computed: dict[str, Tensor]) -> None:
    with atomic_write(target) as temporary:
        save_file({f"out.{name}": tensor.contiguous() for name, tensor in computed.items()}, temporary)


HEADING = f"{'case':34} {'output':22} {'max error':>10} {'allowed':>9} {'rel. rms':>10} {'allowed':>9}"


def summary(rows: Sequence[Row]) -> str:
    """The last line of the table."""
    compared = [row for row in rows if row.allowed is not None]
    return f"{sum(row.passed for row in compared)} of {len(compared)} outputs within their tolerance"


def line(row: Row) -> str:
    """One row of the table under ``HEADING``."""
    if row.allowed is None:
        return f"{row.case:34} {row.output:22} computed, nothing recorded to compare"
    verdict = "" if row.passed else "  FAILED"
    return (
        f"{row.case:34} {row.output:22} {row.max_abs:10.2e} {row.allowed.max_abs:9.1e} "
        f"{row.rel_rms:10.2e} {row.allowed.rel_rms:9.1e}{verdict}"
    )
