"""A platform that all at once is gone, and comes back on the same state directory."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from omai_ray.settings import Settings
from tests.patience import eventually
from tests.programs import kill_all
from tests.ray.conftest import Served
from tests.ray.test_batches import CHAT, answers, ended, submit
from tests.ray.test_command import address, serving
from tests.ray.test_reload import write

UNIT, UNITS = 64, 8
LINES = UNIT * UNITS
TOKENS = 100
CHATS = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Hello"}],
    "logit_bias": {"70": 100},
    "max_tokens": TOKENS,
}


@pytest.mark.timeout(600)
def test_a_batch_goes_on_after_the_machine_has_restarted(
    tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    """What was done before stays; each line is answered once, and is in the ledger once."""
    state_dir, config = tmp_path / "state", tmp_path / "platform.yaml"
    settings = Settings(state_dir=state_dir)
    write(config, tiny_models)
    with serving(state_dir, None, "--config", str(config)) as process:
        url = address(process)
        account, key = Served(url, settings).create_key("enterprise")
        client = openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)
        batch = submit(client, "/v1/chat/completions", [CHATS] * LINES)
        done: list[int] = []

        def some_are_done() -> bool:
            counts = client.batches.retrieve(batch).request_counts
            done.append(counts.completed if counts else 0)
            return done[-1] > 0

        eventually(some_are_done, 120.0)
        assert done[-1] < LINES
        kill_all(process.pid)
    with serving(state_dir, None, "--config", str(config)) as process:
        url = address(process)
        client = openai.OpenAI(api_key=key, base_url=f"{url}/v1")
        came_to = ended(client, batch)
        assert "completed" == came_to.status
        assert LINES == came_to.request_counts.completed
        lines = answers(client, came_to.output_file_id)
        assert {f"r{number}" for number in range(LINES)} == lines.keys()
        assert {TOKENS} == {line["body"]["usage"]["completion_tokens"] for line in lines.values()}
        assert [TOKENS] * LINES == [
            record["completion_tokens"] for record in Served(url, settings).records(account)
        ]
