"""Vector stores that a job feeds from its committed files: Lance, Qdrant, PostgreSQL."""
