"""Grafana dashboards, generated from one module, and Prometheus' rules."""
