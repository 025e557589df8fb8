"""Backends: one definition of the recurrence, and the faster paths that agree with it."""
