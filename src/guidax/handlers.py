"""Effect handlers for models written in the model language."""

from __future__ import annotations

from ._model.handlers import block as block
from ._model.handlers import condition as condition
from ._model.handlers import mask as mask
from ._model.handlers import replay as replay
from ._model.handlers import scale as scale
from ._model.handlers import seed as seed
from ._model.handlers import substitute as substitute
from ._model.handlers import trace as trace
