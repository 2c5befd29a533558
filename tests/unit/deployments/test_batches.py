from __future__ import annotations

import pytest

from deployments.batches import _last_configured, _must_begin_anew, gone
from omai_ray.settings import BatchSettings, EmbeddingJobSettings, FileSettings, Settings


def test_a_driver_begins_anew_where_batches_or_files_are_set_otherwise() -> None:
    """It holds the place of files open; all else it goes over to."""
    before = Settings()
    for changes, anew in (
        ({"log_level": "DEBUG"}, False),
        ({"batches": BatchSettings(workers=2)}, True),
        ({"files": FileSettings(location="s3://bucket/files")}, True),
        ({"files": FileSettings(max_bytes=1)}, False),
        ({"embedding_jobs": EmbeddingJobSettings(locations=("/data",), workers=2)}, False),
        ({"embedding_jobs": EmbeddingJobSettings(max_running=2)}, True),
    ):
        assert anew == _must_begin_anew(before, before.model_copy(update=changes))


def test_what_another_version_kept_does_not_end_a_driver(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes by the settings that it is started with, and says so."""
    settings = Settings(log_level="DEBUG")
    values = settings.model_dump_json()
    for last, expected in (
        (None, None),
        (f"omai\n{values}".encode(), (settings, "omai")),
        (values.encode(), None),
        (b'omai\n{"prot": 1}', None),
    ):
        caplog.clear()
        monkeypatch.setattr("deployments.batches.kept", lambda _, last=last: last)
        assert expected == _last_configured(b"key")
        unread = last is not None and expected is None
        assert unread == ("cannot be read" in caplog.text)


async def test_an_application_is_gone_once_it_is_missed_three_times_in_a_row() -> None:
    """Serve may be away, and may know of nothing for a moment as it comes back."""
    looks: list[bool | Exception] = [True, False, False, True, False, OSError("away"), False, False]

    def is_served() -> bool:
        look = looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    await gone(is_served, every_s=0.0)
    assert [] == looks
