"""The embedded Postgres, from its first start to the worst that may happen to it."""
