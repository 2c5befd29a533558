"""The default chat engine: any causal model that transformers can load, in static batches.

One owned thread runs the model. Requests that arrive while a batch runs form the next one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from transformers import AutoModelForCausalLM

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.protocol import EngineStats, GenerationRequest, StepOutput
from omai_ray.engines.chat.static_batch import Sequence, StaticBatch
from omai_ray.engines.checkpoint import check_safe
from omai_ray.engines.device import choose_device, choose_dtype
from omai_ray.errors import Overloaded, ServerError
from omai_ray.text.tokenizer import TextTokenizer, longest_context

_log = logging.getLogger(__name__)


class TransformersEngine:
    """Implements ChatEngine over an unmodified transformers model.

    Raises CheckpointError or ConfigError where the model cannot be used.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._directory = locate(spec)
        check_safe(self._directory)
        tokenizer = TextTokenizer(self._directory)
        self.context = longest_context(self._directory, tokenizer, spec.context)
        self._waiting: deque[tuple[Sequence, _Mailbox]] = deque()
        self._mailboxes: dict[str, tuple[Sequence, _Mailbox]] = {}
        self._wake = threading.Condition()
        self._draining = False
        self._running = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Load the weights and start the thread that runs them."""
        self._load()
        self._thread = threading.Thread(target=self._run, name="chat-engine", daemon=True)
        self._thread.start()

    async def drain(self) -> None:
        """Finish every accepted request, then end the thread."""
        with self._wake:
            self._draining = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
        """Yield the request's tokens as they are sampled.

        Raises Overloaded when the queue is full or the engine is draining. Leaving the iterator
        early cancels the request.
        """
        sequence = Sequence(request, self.vocab_size)
        mailbox = _Mailbox()
        self._submit(sequence, mailbox)
        try:
            while True:
                output = await mailbox.receive()
                yield output
                if output.finish is not None:
                    return
        finally:
            self._mailboxes.pop(request.request_id, None)
            self._withdraw(sequence, mailbox)

    def abort(self, request_id: str) -> None:
        """Cancel a request, if it is still there: its iterator ends with finish `abort`."""
        found = self._mailboxes.get(request_id)
        if found is not None and self._withdraw(*found):
            found[1].send(StepOutput([], "abort"))

    def _withdraw(self, sequence: Sequence, mailbox: _Mailbox) -> bool:
        """Have a sequence end; return whether it was still waiting, and so will never run."""
        sequence.aborted = True
        with self._wake:
            waiting = (sequence, mailbox) in self._waiting
            if waiting:
                self._waiting.remove((sequence, mailbox))
        return waiting

    def stats(self) -> EngineStats:
        """Return what runs and what waits."""
        return EngineStats(running=self._running, waiting=len(self._waiting))

    def check_health(self) -> None:
        """Raise ServerError where the thread has ended."""
        if self._thread is None or not self._thread.is_alive():
            raise ServerError("the chat engine's thread is not running")

    def _load(self) -> None:
        device = choose_device(self._spec.num_gpus)
        model = AutoModelForCausalLM.from_pretrained(
            self._directory,
            dtype=choose_dtype(self._spec.dtype, device, bfloat16_cpu=False),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        self._model: Any = model.to(device).eval()
        self.vocab_size = int(model.config.vocab_size)
        stops = model.generation_config.eos_token_id
        self.stop_token_ids = frozenset([stops] if isinstance(stops, int) else stops or [])

    def _submit(self, sequence: Sequence, mailbox: _Mailbox) -> None:
        with self._wake:
            if self._draining:
                raise Overloaded("The model's replica is shutting down. Please try again.")
            if len(self._waiting) >= self._spec.max_queued_requests:
                raise Overloaded(
                    f"The model has {len(self._waiting)} requests waiting. Please try again later.",
                )
            self._waiting.append((sequence, mailbox))
            self._mailboxes[sequence.request.request_id] = (sequence, mailbox)
            self._wake.notify()

    def _run(self) -> None:
        while batch := self._next_batch():
            sequences = [sequence for sequence, _ in batch]
            mailboxes = {id(sequence): mailbox for sequence, mailbox in batch}
            self._running = len(batch)
            try:
                self._run_batch(sequences, mailboxes)
            except Exception as error:  # one batch's failure must not end the engine
                _log.exception("a chat batch failed")
                for mailbox in mailboxes.values():
                    mailbox.send(StepOutput([], "error", error=type(error).__name__))
            self._running = 0

    def _run_batch(self, sequences: list[Sequence], mailboxes: dict[int, _Mailbox]) -> None:
        batch = StaticBatch(self._model, sequences, self.stop_token_ids)
        while batch.sequences:
            for sequence, output in batch.step():
                mailboxes[id(sequence)].send(output)
                if output.finish is not None:
                    del mailboxes[id(sequence)]

    def _next_batch(self) -> list[tuple[Sequence, _Mailbox]]:
        """Wait for work and take what may run together; empty when drained."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._draining)
            size = min(len(self._waiting), self._spec.max_running_requests)
            return [self._waiting.popleft() for _ in range(size)]


class _Mailbox:
    """One request's outputs, on their way from the engine's thread to the caller's loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[StepOutput] = asyncio.Queue()

    def send(self, output: StepOutput) -> None:
        """Deliver from another thread; a loop that is gone needs nothing any more."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, output)
        except RuntimeError:
            _log.debug("the caller's loop has closed")

    async def receive(self) -> StepOutput:
        """Wait for the next output."""
        return await self._queue.get()
