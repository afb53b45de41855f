"""Afterwards: predictions, diagnostics, pictures, and exchange with other libraries."""
