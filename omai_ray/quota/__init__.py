"""Rate tiers: how much an account may use in a minute, decided exactly and once."""
