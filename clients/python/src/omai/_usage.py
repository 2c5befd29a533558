"""`client.usage`: GET /v1/usage."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from openai._base_client import make_request_options
from openai._legacy_response import async_to_raw_response_wrapper, to_raw_response_wrapper
from openai._resource import AsyncAPIResource, SyncAPIResource
from openai._response import async_to_streamed_response_wrapper, to_streamed_response_wrapper
from openai.pagination import AsyncPage, SyncPage

from omai._options import CallOptions, given
from omai.types import UsageRow

if TYPE_CHECKING:
    from openai._base_client import AsyncPaginator
    from typing_extensions import Unpack

Time: TypeAlias = "int | datetime"
Group: TypeAlias = Literal["model", "key"]
Width: TypeAlias = Literal["1h", "1d"]


class Usage(SyncAPIResource):
    """What the caller's account has used."""

    def list(
        self,
        *,
        start_time: Time | None = None,
        end_time: Time | None = None,
        bucket_width: Width | None = None,
        group_by: Group | Sequence[Group] | None = None,
        **options: Unpack[CallOptions],
    ) -> SyncPage[UsageRow]:
        """Sum up usage from start_time up to end_time, in whole hours.

        Times are seconds since the epoch, or datetimes with a time zone. bucket_width: one row an
        hour or a day, instead of one for the whole time. group_by: "model" unless given.
        """
        query = _query(start_time, end_time, bucket_width, group_by)
        return self._get_api_list(
            "/usage",
            page=SyncPage[UsageRow],
            model=UsageRow,
            options=make_request_options(query=query, **options),
        )

    @cached_property
    def with_raw_response(self) -> UsageWithRawResponse:
        """The same, answering with the raw response."""
        return UsageWithRawResponse(self)

    @cached_property
    def with_streaming_response(self) -> UsageWithStreamingResponse:
        """The same, answering with a response whose body is read by the caller."""
        return UsageWithStreamingResponse(self)


class AsyncUsage(AsyncAPIResource):
    """What the caller's account has used."""

    def list(
        self,
        *,
        start_time: Time | None = None,
        end_time: Time | None = None,
        bucket_width: Width | None = None,
        group_by: Group | Sequence[Group] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncPaginator[UsageRow, AsyncPage[UsageRow]]:
        """Sum up usage from start_time up to end_time, in whole hours.

        Times are seconds since the epoch, or datetimes with a time zone. bucket_width: one row an
        hour or a day, instead of one for the whole time. group_by: "model" unless given.
        """
        query = _query(start_time, end_time, bucket_width, group_by)
        return self._get_api_list(
            "/usage",
            page=AsyncPage[UsageRow],
            model=UsageRow,
            options=make_request_options(query=query, **options),
        )

    @cached_property
    def with_raw_response(self) -> AsyncUsageWithRawResponse:
        """The same, answering with the raw response."""
        return AsyncUsageWithRawResponse(self)

    @cached_property
    def with_streaming_response(self) -> AsyncUsageWithStreamingResponse:
        """The same, answering with a response whose body is read by the caller."""
        return AsyncUsageWithStreamingResponse(self)


class UsageWithRawResponse:
    """Methods of Usage, answering with raw responses."""

    def __init__(self, usage: Usage) -> None:
        self.list = to_raw_response_wrapper(usage.list)


class AsyncUsageWithRawResponse:
    """Methods of AsyncUsage, answering with raw responses."""

    def __init__(self, usage: AsyncUsage) -> None:
        self.list = async_to_raw_response_wrapper(usage.list)


class UsageWithStreamingResponse:
    """Methods of Usage, answering with responses whose bodies are read by the caller."""

    def __init__(self, usage: Usage) -> None:
        self.list = to_streamed_response_wrapper(usage.list)


class AsyncUsageWithStreamingResponse:
    """Methods of AsyncUsage, answering with responses whose bodies are read by the caller."""

    def __init__(self, usage: AsyncUsage) -> None:
        self.list = async_to_streamed_response_wrapper(usage.list)


def _query(
    start: Time | None, end: Time | None, width: Width | None, groups: str | Sequence[str] | None
) -> dict[str, Any]:
    return given(
        start_time=_seconds(start),
        end_time=_seconds(end),
        bucket_width=width,
        group_by=groups if groups is None or isinstance(groups, str) else ",".join(groups),
    )


def _seconds(time: Time | None) -> int | None:
    if not isinstance(time, datetime):
        return time
    if time.tzinfo is None:
        raise ValueError(f"A datetime needs a time zone, such as timezone.utc: {time!r}")
    return int(time.timestamp())
