"""Touches the world: the request, the secret, the upstream, the store, the record."""
