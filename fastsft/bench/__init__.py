"""Measures recipes as real training runs, and says what the figures are worth.  No torch."""
