"""Learnable invertible maps of a vector, which hand out distrax bijectors."""
