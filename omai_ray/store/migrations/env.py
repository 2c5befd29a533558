"""Run by alembic: migrate on the connection that `omai_ray.store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from omai_ray.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
