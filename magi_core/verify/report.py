"""Walk through a golden folder: compute, compare, write, and print one row an output."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.files import atomic_write
from magi_core.golden import Golden, Tolerance, compare
from magi_core.verify import documents, families

INCOMPLETE = (MagiError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)
"""What a case with missing or wrong inputs raises."""
UNSTATED = Tolerance(float("inf"), float("inf"))
"""Where a folder records an output and does not say how near it must be: the error is shown, nothing is judged."""

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
    A case that cannot be computed fails, with the reason in the log; a family that is not known is left out, with a warning there.
    Raises MagiError when the folder is no golden folder or ``write`` cannot be written, or would overwrite the inputs.
    """
    if write is not None and Path(write).resolve() == Path(folder).resolve():
        raise MagiError(f"{folder} holds the inputs; name another folder for what is written")
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
            log.warning("%s is left out: the family %s is not verified here", case.id, case.family)
            continue
        try:
            computed = compute(golden, case)
        except INCOMPLETE as error:
            yield _not_computed(case.id, error)
            continue
        if write is not None:
            _write_tensors(Path(write) / case.file.relative_to(golden.folder), computed)
        for name, tensor in computed.items():
            if name in case.outputs:
                errors = compare(tensor, case.outputs[name])
                yield Row(case.id, name, *errors, case.tolerance.get(name, UNSTATED))
            else:
                yield Row(case.id, name, 0.0, 0.0, None)
    for name, complete in documents.DOCUMENTS.items():
        if not (golden.folder / name).is_file():
            continue
        recorded = golden.json(name)
        try:
            computed_document = complete(golden, recorded)
        except INCOMPLETE as error:
            yield _not_computed(name.removesuffix(".json"), error)
            continue
        if write is not None:
            with atomic_write(Path(write) / name) as temporary:
                temporary.write_text(json.dumps(computed_document, ensure_ascii=True), encoding="utf-8")
        for part, difference in documents.differences(computed_document, recorded).items():
            yield Row(name.removesuffix(".json"), part, difference, 0.0, Tolerance(documents.TIME_TOLERANCE, 0.0))


def _not_computed(case: str, error: Exception) -> Row:
    log.error("%s cannot be computed: %r", case, error)
    return Row(case, "not computed", float("inf"), float("inf"), Tolerance(0.0, 0.0))


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
