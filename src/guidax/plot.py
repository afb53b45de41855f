"""Pictures of fits and posteriors. They need matplotlib, the extra `plot`."""

from ._posterior.pictures import khat as khat
from ._posterior.pictures import loss as loss
from ._posterior.pictures import marginals as marginals
from ._posterior.pictures import pairs as pairs
