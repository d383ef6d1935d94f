"""Stands in for the world, on real sockets of 127.0.0.1: the upstreams, and a Secret Manager."""
