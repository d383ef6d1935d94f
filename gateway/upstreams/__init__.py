"""Sends calls to the upstreams, over one transport."""
