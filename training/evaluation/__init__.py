"""Measuring a network: quality, agreement and cost."""
