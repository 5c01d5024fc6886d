"""Artifacts for other tools."""
