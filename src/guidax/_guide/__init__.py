"""A family bound to a model."""
