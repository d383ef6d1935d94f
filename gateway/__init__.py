"""Everything with side effects: the request, the secret, the upstream, the store, the record."""
