"""Launching on clusters: plain Python, no torch."""
