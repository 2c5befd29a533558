"""The ingress: the HTTP API in a Serve replica, its backends being Serve handles."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.backends import HandleChatBackend, HandleEmbeddingBackend
from deployments.batches import start_driver
from deployments.limiter import open_limiter
from deployments.metrics import export, sample_ingress
from deployments.names import deployment_name
from deployments.serving import serve_models
from omai_ray.api.app import Services, create_app
from omai_ray.api.backends import ServedModels
from omai_ray.batches.batches import Batches
from omai_ray.embedding_jobs.jobs import EmbeddingJobs
from omai_ray.embedding_jobs.locations import AllowedLocations
from omai_ray.files import Contents, Files, sweep
from omai_ray.garbage import start_uncollected
from omai_ray.identity.administration import Administration
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.registry import Registry
from omai_ray.ledger import UsageLedger
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.quota.gate import Gate
from omai_ray.settings import Settings
from omai_ray.telemetry.logs import configure_logs
from omai_ray.telemetry.recorder import Recorder

LEDGER_CLOSE_S = 2.0
CATALOG = {"models", "aliases"}  # the settings that a running replica takes anew
_log = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """Builds the API once the replica is up."""

    def __init__(self, settings: Settings, handles: dict[str, DeploymentHandle[Any]]) -> None:
        configure_logs(settings.log_level, settings.log_file)
        self._settings = settings
        self._handles = handles

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the API over this replica's handles. Raises ConfigError."""
        with start_uncollected():
            return await self._app()

    async def _app(self) -> ASGIApp:
        settings = self._settings
        registry = await Registry.open(settings, models=lambda: self._models.catalog.names)
        authenticator = Authenticator(registry, settings.sessions)
        ledger = UsageLedger(registry.store)
        limiter = open_limiter(settings.limiter, settings.ingress.replicas)
        administration = Administration(registry)
        contents = await asyncio.to_thread(Contents.at, settings.files_location)
        files = Files(registry.store, contents)
        locations = AllowedLocations(settings.embedding_jobs.locations)
        sweeping = asyncio.create_task(sweep(files))
        recorder = Recorder()
        exporter = export(recorder, lambda: sample_ingress(recorder, limiter))
        if not await administration.users.has_administrator():
            _log.warning("there is no administrator: see 'omai-ray users create --role admin'")

        async def close() -> None:
            try:
                sweeping.cancel()
                await limiter.close()  # nobody waits to settle before recording
                await ledger.close(timeout_s=LEDGER_CLOSE_S)
                await authenticator.close()
            finally:
                await registry.close()
                await asyncio.to_thread(contents.close)
                await asyncio.to_thread(exporter.close)

        self._models = await self._serve(settings)
        self._batches = start_driver(settings, serve.get_replica_context().app_name)
        services = Services(
            models=self._models,
            gate=Gate(
                limiter,
                settings.tiers,
                MonthlyBudgets(ledger.tokens_in_month, answer_s=registry.store.patience_s),
            ),
            ledger=ledger,
            authenticator=authenticator,
            administration=administration,
            tiers=settings.tiers,
            sessions=settings.sessions,
            files=files,
            batches=Batches(registry.store, files),
            embedding_jobs=EmbeddingJobs(registry.store, files, locations),
            file_limits=settings.files,
            ingress=settings.ingress,
            trusted_proxies=settings.trusted_proxies,
            proxy_echoes_id=True,
            recorder=recorder,
            close=close,
        )
        return create_app(services)

    async def reconfigure(self, catalog: dict[str, Any]) -> None:
        """Serve another catalog, requests going on; Serve calls this at the start as well."""
        settings = Settings.model_validate({**self._settings.model_dump(), **catalog})
        if settings != self._settings:
            self._models.become(await self._serve(settings))
            self._settings = settings
            self._batches.configure.remote(settings, serve.get_replica_context().app_name)
            _log.info("serving %s", ", ".join(settings.catalog.models))

    async def _serve(self, settings: Settings) -> ServedModels:
        # Here, not in the thread that reads files: Serve may bind a handle to the running loop.
        backends = {
            spec.name: (HandleChatBackend if spec.task == "chat" else HandleEmbeddingBackend)(
                self._handle(spec.name)
            )
            for spec in settings.models
        }
        return await asyncio.to_thread(serve_models, settings, backends)

    def _handle(self, model: str) -> DeploymentHandle[Any]:
        if model not in self._handles:
            app = serve.get_replica_context().app_name
            self._handles[model] = serve.get_deployment_handle(deployment_name(model), app)
        return self._handles[model]
