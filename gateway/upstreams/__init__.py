"""The upstreams: one module each, and the one transport that all of them use."""
