"""Headrace beside its limits and its rivals: `python -m bench`, one file a workload."""
