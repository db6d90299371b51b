"""What ``lightning-loggers demo``, the notebook and the README train on: real data, a small model, a picture."""
