"""The loggers that a user passes to a Trainer."""
