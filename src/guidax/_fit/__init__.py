"""Training: one pure update, the loop around it, and the host side."""
