"""Learning examples and datasets: reviewed, frozen, exported.

Always holds: a review and a dataset have an author and a reason, in the journal; a version exports the same bytes for
ever, in chunks of whole lines.

Deliberately not here: what becomes a candidate (`state.examples`), what is in a line (`core.example_key`).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from typing import Final

from outrider.feedback_check import MAX_CONTENT_BYTES, MAX_CORRECTION_BYTES
from outrider.v1 import experiment_pb2
from outrider_control.api import convert, requests
from outrider_control.api.auth import current_caller
from outrider_control.api.errors import Invalid, NotFound
from outrider_control.core.example_key import PARTS, Shares
from outrider_control.state import datasets, examples
from outrider_control.state.database import Database
from outrider_control.state.datasets import DatasetRow
from outrider_control.state.examples import ExampleRow, Review

CHUNK_BYTES: Final = 256 * 1024  # of a dataset; a chunk holds one line at least
_VERDICTS: Final = {"approve": examples.APPROVED, "reject": examples.REJECTED}
_SUM_SLACK: Final = 1e-6


class ExamplesApi:
    """Examples of all agents."""

    def __init__(self, db: Database, clock_ms: Callable[[], int]):
        self._db = db
        self._clock_ms = clock_ms

    async def list_some(self, request: experiment_pb2.ListExamplesRequest) -> experiment_pb2.ListExamplesReply:
        """Examples, oldest first."""
        agent_id = requests.name(request.agent_id, "agent_id")
        if request.state and request.state not in examples.STATES:
            raise Invalid("state", f"{request.state[:20]!r} is not one of {', '.join(examples.STATES)}")
        rows = await self._db.read(
            examples.listed, agent_id, request.state, max(0, request.after_id), requests.limit(request.limit, 100)
        )
        counts = await self._db.read(examples.counts, agent_id)
        shown = requests.slim(map(_example, rows), ("input", "output", "correction", "complaint"))
        return experiment_pb2.ListExamplesReply(examples=shown, counts=counts)

    async def review(self, request: experiment_pb2.ReviewExampleRequest) -> experiment_pb2.Example:
        """Approve, edit or reject one."""
        state = _VERDICTS.get(request.verdict)
        if state is None:
            raise Invalid("verdict", f"{request.verdict[:20]!r} is not one of {', '.join(_VERDICTS)}")
        question = request.input if request.HasField("input") else None
        correction = request.correction if request.HasField("correction") else None
        if state != examples.APPROVED and (question is not None or correction is not None):
            field = "input" if question is not None else "correction"
            raise Invalid(field, "goes only with the verdict approve: what is rejected is not edited")
        _bounded(question, "input", MAX_CONTENT_BYTES)
        _bounded(correction, "correction", MAX_CORRECTION_BYTES)
        done = Review(state, requests.reason(request), current_caller().name, question, correction)
        try:
            row = await self._db.write(examples.review, request.id, done, self._clock_ms())
        except examples.UnknownExample:
            raise NotFound(f"there is no example {request.id}: see `outrider examples list`") from None
        return _example(row)

    async def create_dataset(self, request: experiment_pb2.CreateDatasetRequest) -> experiment_pb2.Dataset:
        """Freeze the approved examples of an agent."""
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        why = requests.reason(request)
        shares = _shares(request.train, request.validation, request.holdout)
        author, now_ms = current_caller().name, self._clock_ms()
        try:
            return _dataset(await self._db.write(datasets.create, agent_id, shares, author, why, now_ms))
        except datasets.NothingApproved:
            reason = f"{agent_id!r} has no approved examples: approve some first (`outrider examples review`)"
            raise Invalid("agent_id", reason) from None
        except datasets.TooMany as error:
            raise Invalid("agent_id", str(error)) from None

    async def list_datasets(self, request: experiment_pb2.ListDatasetsRequest) -> experiment_pb2.ListDatasetsReply:
        """All versions, newest first."""
        rows = await self._db.read(datasets.all_versions, requests.name(request.agent_id, "agent_id"))
        return experiment_pb2.ListDatasetsReply(datasets=map(_dataset, rows))

    async def export(
        self, request: experiment_pb2.ExportDatasetRequest
    ) -> AsyncGenerator[experiment_pb2.DatasetChunk, None]:
        """The lines of a version, or of one part of it."""
        agent_id = requests.name(request.agent_id, "agent_id", required=True)
        if request.part and request.part not in PARTS:
            raise Invalid("part", f"{request.part[:20]!r} is not one of {', '.join(PARTS)}")
        if request.version < 0:
            raise Invalid("version", f"{request.version} is below 0")
        found = await self._db.read(datasets.of_version, agent_id, request.version)
        if found is None:
            which = f"version {request.version}" if request.version else "dataset"
            raise NotFound(f"{agent_id!r} has no {which}: see `outrider examples datasets`")
        chunk = experiment_pb2.DatasetChunk(dataset=_dataset(found))
        lines: list[str] = []
        size_bytes, after = 0, -1
        while rows := await self._db.read(datasets.lines, agent_id, found.version, request.part, after):
            for position, line in rows:
                after = position
                line_bytes = len(line.encode())
                if lines and size_bytes + line_bytes > CHUNK_BYTES:
                    chunk.jsonl = "".join(lines)
                    yield chunk
                    chunk, lines, size_bytes = experiment_pb2.DatasetChunk(), [], 0
                lines.append(line)
                size_bytes += line_bytes
        chunk.jsonl = "".join(lines)
        if lines or chunk.HasField("dataset"):
            yield chunk


def _shares(train: float, validation: float, holdout: float) -> Shares:
    shares = Shares(train, validation, holdout)
    if not any(shares):
        return Shares()
    for name, share in shares._asdict().items():
        if not (math.isfinite(share) and 0.0 <= share <= 1.0):
            raise Invalid(name, f"{share:g} is not between 0 and 1")
    if abs(sum(shares) - 1.0) > _SUM_SLACK:
        raise Invalid("train", f"train, validation and holdout are {sum(shares):g} together, not 1")
    return shares


def _bounded(text: str | None, field: str, most: int) -> None:
    if text is not None and len(text.encode()) > most:
        raise Invalid(field, f"has {len(text.encode()):,} bytes; at most {most:,} are taken")
    if text is not None and "\0" in text:
        raise Invalid(field, "holds a NUL character, which cannot be kept")


def _example(row: ExampleRow) -> experiment_pb2.Example:
    return experiment_pb2.Example(
        id=row.id,
        agent_id=row.agent_id,
        input=row.input,
        output=row.output,
        correction=row.correction,
        complaint=row.complaint,
        labels=row.labels,
        state=row.state,
        trace_ids=row.trace_ids,
        count=row.count,
        first_unix_ms=row.first_ms,
        last_unix_ms=row.last_ms,
        reviewer=convert.text(row.reviewer),
        review_reason=convert.text(row.review_reason),
    )


def _dataset(row: DatasetRow) -> experiment_pb2.Dataset:
    return experiment_pb2.Dataset(
        agent_id=convert.text(row.agent_id),
        version=row.version,
        created_unix_ms=row.created_ms,
        author=convert.text(row.author),
        reason=convert.text(row.reason),
        counts=row.counts,
        digest=row.digest,
    )
