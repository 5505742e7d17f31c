"""Data, training and evaluation for the models that nap-runtime serves."""
