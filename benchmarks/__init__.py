"""What logging costs, measured beside its floor in one run: ``python -m benchmarks``."""
