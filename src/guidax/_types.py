"""Names for types that many files use."""

from __future__ import annotations

from jaxtyping import PRNGKeyArray

Key = PRNGKeyArray
