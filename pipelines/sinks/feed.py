"""Feed a sink with what a job commits, in a thread beside the embedding.

The parquet output stays the truth: a unit is fed from its committed file. What was fed is noted
in a ledger of the sink's own, so a sink can be added to a finished run, and resumes by itself.
Rows are keyed by identity, so a unit that is fed again after a kill leaves each row once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa

from omai_ray.errors import ConfigError, OMAiError
from omai_ray.storage import Location
from pipelines.errors import RunFailed, brief
from pipelines.job import digest
from pipelines.run_lease import RUN, Lease
from pipelines.run_ledger import Entry, open_ledger
from pipelines.sinks.rows import CommittedUnit
from pipelines.sinks.sink import Sink, SinkTarget, connect

RETRY_AFTER_S = (1.0, 5.0)

_log = logging.getLogger(__name__)


class FedLedger:
    """Which units a sink has, in a ledger of its own.

    entries: as they were fed, by name; one without a key is of rows that may be there or not.
    """

    def __init__(self, output: Location, target: SinkTarget) -> None:
        name = f"{target.kind}-{digest(target.shown)[:16]}"
        self._ledger = open_ledger(output.child(f"{RUN}/sinks/{name}"))
        self.entries = self._ledger.read()

    def intend(self, name: str) -> None:
        """Note, durably, that the sink is about to change a unit's rows.

        A run that is killed before it notes the change leaves the next to make it, or to take the
        rows back: without a trace, they would stay for good once the input has lost them.
        """
        intent = Entry(name, key="")
        if self.entries.get(name) != intent:
            self._ledger.append(intent)
            self._ledger.flush()
            self.entries[name] = intent

    def note(self, entry: Entry) -> None:
        """Add an entry."""
        self._ledger.append(entry)
        if entry.removed:
            self.entries.pop(entry.output, None)
        else:
            self.entries[entry.output] = entry

    def has(self, entry: Entry) -> bool:
        """Say whether the sink has just this version of a unit.

        With the same key, rows may differ by those that a model failed on: then the bytes do.
        """
        fed = self.entries.get(entry.output)
        same = fed is not None and (fed.key, fed.sha256) == (entry.key, entry.sha256)
        return same and bool(entry.key)

    def flush(self) -> None:
        """Make every entry durable; a unit whose entry was lost is fed again, to the same rows."""
        self._ledger.flush()

    def forget(self) -> None:
        """Take it that the sink has nothing."""
        self._ledger.delete()
        self.entries = {}


class Feeder:
    """Feeds a sink in the one thread of a pool; used by one other thread.

    corpus: the job's source. schema: of the sink's rows. held: the output, without which nothing
    is fed. rows: fed so far. Failures are raised by `add` and `finish`; what is waiting after one,
    or after `stop`, is not fed.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        sink: Sink,
        name: str,
        ledger: FedLedger,
        output: Location,
        corpus: str,
        schema: pa.Schema,
        held: Lease,
    ) -> None:
        self._pool, self._sink, self._ledger, self.name = pool, sink, ledger, name
        self._output, self._corpus, self._schema, self._held = output, corpus, schema, held
        self.rows = 0
        self._stopped = threading.Event()
        self._failure: OMAiError | None = None

    def catch_up(self, entries: Mapping[str, Entry], pending: Collection[str]) -> None:
        """Have the sink lose what the output no longer has, and get what was committed before.

        pending: units that are about to be done again, whose files may change at any time; they
        are fed by `add` once they are committed.
        """
        for name in list(self._ledger.entries):  # which the thread changes
            if name not in pending and (name not in entries or entries[name].bytes is None):
                self._pool.submit(self._feed, Entry(name, key="", removed=True))
        for name, entry in entries.items():
            if name not in pending:
                self.add(entry)

    def add(self, entry: Entry) -> None:
        """Have a committed unit fed. Raises RunFailed where an earlier one could not be."""
        self._check()
        if entry.bytes is not None:
            self._pool.submit(self._feed, entry)

    def finish(self) -> None:
        """Wait until all is fed. Raises RunFailed where it cannot be."""
        self._pool.submit(self._check).result()

    def stop(self) -> None:
        """Feed nothing more; the unit that is being fed is, to its end."""
        self._stopped.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _feed(self, entry: Entry) -> None:
        if self._failure is not None or self._stopped.is_set():
            return
        try:
            self._apply(entry)
        except OMAiError as error:
            self._failure = error
        except Exception as error:  # whatever a store's library raises
            self._failure = RunFailed(
                f"sink {self.name} cannot be fed: {brief(error)}. The parquet files are whole; "
                "the same command resumes"
            )

    def _apply(self, entry: Entry) -> None:
        if self._ledger.has(entry):
            return
        self._held.check()
        unit = CommittedUnit(self._output, entry, self._corpus, self._schema)
        self._ledger.intend(entry.output)
        if entry.removed:
            self._attempt(lambda: self._sink.remove(unit.id))
        else:
            self._attempt(lambda: self._sink.put(unit.id, unit.version, unit.batches()))
        self._ledger.note(entry)
        self.rows += unit.rows

    def _attempt(self, call: Callable[[], None]) -> None:
        """Call the sink, and some times more where it fails: a server may restart."""
        for wait_s in RETRY_AFTER_S:
            try:
                return call()
            except OMAiError:
                raise
            except Exception as error:
                _log.warning("sink %s: %s; trying again in %g s", self.name, brief(error), wait_s)
                if self._stopped.wait(wait_s):
                    raise
        return call()


@contextmanager
def feed_sink(
    target: SinkTarget, output: Location, corpus: str, schema: pa.Schema, held: Lease
) -> Iterator[Feeder]:
    """Open a sink before any work, and feed it while the context lasts.

    schema: as of `row_schema`. held: the output. Raises ConfigError where the sink takes no such
    rows, or is away.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="sink") as pool:  # has all of the sink's calls
        ledger = FedLedger(output, target)
        sink = pool.submit(_open, target, ledger, schema).result()
        feeder = Feeder(pool, sink, target.shown, ledger, output, corpus, schema, held)
        try:
            yield feeder
        finally:
            feeder.stop()
            pool.submit(sink.close).result()
            ledger.flush()


def _open(target: SinkTarget, ledger: FedLedger, schema: pa.Schema) -> Sink:
    sink = None
    try:
        sink = connect(target)
        if not sink.exists():
            ledger.forget()  # before the table is made: a kill in between must not lose rows
        sink.prepare(schema)
    except Exception as error:
        if sink is not None:
            sink.close()
        if isinstance(error, OMAiError):
            raise
        raise ConfigError(f"sink {target.shown} cannot be used: {brief(error)}") from error
    return sink
