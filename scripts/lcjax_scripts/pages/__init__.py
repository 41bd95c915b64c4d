"""Writes pages and pictures of docs/ from raw files."""
