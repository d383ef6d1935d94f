"""Talks to people: the operator's command."""
