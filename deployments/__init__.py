"""Ray Serve deployments: the ingress, a deployment for each model, the shared limiter."""
