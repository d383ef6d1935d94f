"""The upstreams: a module each for how they are spoken to, the one way of sending, and the one transport."""
