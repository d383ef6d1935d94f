"""Simulates the upstreams and Google's services, on real sockets of 127.0.0.1."""
