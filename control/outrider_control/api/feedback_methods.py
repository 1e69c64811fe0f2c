"""The methods of feedback, learning examples and datasets of the operator's service.

Always holds: as `operator_service`, which these are a part of.
"""

# ruff: noqa: N802 - the names are those of the service

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from outrider.v1 import experiment_pb2, feedback_pb2
from outrider_control.api.errors import Context, answer, answer_stream
from outrider_control.api.examples_api import ExamplesApi
from outrider_control.api.feedback_api import FeedbackApi


class FeedbackMethods:
    """Mixed into the service, which sets `_feedback` and `_examples`."""

    _feedback: FeedbackApi
    _examples: ExamplesApi

    async def CollectFeedback(
        self, request: feedback_pb2.CollectFeedbackRequest, context: Context
    ) -> feedback_pb2.CollectFeedbackReply:
        return await answer(context, self._feedback.collect(request))

    async def ListFeedback(
        self, request: experiment_pb2.ListFeedbackRequest, context: Context
    ) -> experiment_pb2.ListFeedbackReply:
        return await answer(context, self._feedback.list_some(request))

    async def GetSatisfaction(
        self, request: experiment_pb2.GetSatisfactionRequest, context: Context
    ) -> experiment_pb2.GetSatisfactionReply:
        return await answer(context, self._feedback.satisfaction(request))

    async def ListExamples(
        self, request: experiment_pb2.ListExamplesRequest, context: Context
    ) -> experiment_pb2.ListExamplesReply:
        return await answer(context, self._examples.list_some(request))

    async def ReviewExample(
        self, request: experiment_pb2.ReviewExampleRequest, context: Context
    ) -> experiment_pb2.Example:
        return await answer(context, self._examples.review(request))

    async def CreateDataset(
        self, request: experiment_pb2.CreateDatasetRequest, context: Context
    ) -> experiment_pb2.Dataset:
        return await answer(context, self._examples.create_dataset(request))

    async def ListDatasets(
        self, request: experiment_pb2.ListDatasetsRequest, context: Context
    ) -> experiment_pb2.ListDatasetsReply:
        return await answer(context, self._examples.list_datasets(request))

    async def ExportDataset(
        self, request: experiment_pb2.ExportDatasetRequest, context: Context
    ) -> AsyncGenerator[experiment_pb2.DatasetChunk, None]:
        async with contextlib.aclosing(answer_stream(context, self._examples.export(request))) as chunks:
            async for chunk in chunks:
                yield chunk
