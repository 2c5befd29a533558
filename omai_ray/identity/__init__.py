"""Who is calling: accounts, users, keys, sessions, and the middleware that finds the principal."""
