"""Metrics of predictions, their confidence intervals and paired tests."""
