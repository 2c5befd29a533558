"""How many replicas a model needs: what each reports, and the policy that reads it."""
