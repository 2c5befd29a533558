"""Which replica a request goes to. Free of Ray: `deployments/routing.py` has Serve ask here."""
