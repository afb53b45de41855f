"""Afterwards: exchange with other libraries."""
