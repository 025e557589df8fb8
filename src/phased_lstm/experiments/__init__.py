"""Experiments: one file each, run by name from the command line."""
