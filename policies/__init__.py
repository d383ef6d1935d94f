"""Judges. Pure: no network, no Flask, no clock of its own."""
