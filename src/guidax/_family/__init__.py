"""How q draws."""
