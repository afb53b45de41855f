"""The sets that values may lie in, by name: `positive`, `interval(0, 1)`, `simplex` and so on."""

from __future__ import annotations

from ._model.constraints import Constraint as Constraint
from ._model.constraints import boolean as boolean
from ._model.constraints import circular as circular
from ._model.constraints import corr_cholesky as corr_cholesky
from ._model.constraints import corr_matrix as corr_matrix
from ._model.constraints import discrete as discrete
from ._model.constraints import greater_than as greater_than
from ._model.constraints import greater_than_eq as greater_than_eq
from ._model.constraints import independent as independent
from ._model.constraints import integer as integer
from ._model.constraints import integer_greater_than as integer_greater_than
from ._model.constraints import integer_interval as integer_interval
from ._model.constraints import interval as interval
from ._model.constraints import l1_ball as l1_ball
from ._model.constraints import less_than as less_than
from ._model.constraints import less_than_eq as less_than_eq
from ._model.constraints import lower_cholesky as lower_cholesky
from ._model.constraints import multinomial as multinomial
from ._model.constraints import nonnegative as nonnegative
from ._model.constraints import nonnegative_integer as nonnegative_integer
from ._model.constraints import one_hot as one_hot
from ._model.constraints import open_interval as open_interval
from ._model.constraints import ordered as ordered
from ._model.constraints import positive as positive
from ._model.constraints import positive_definite as positive_definite
from ._model.constraints import positive_integer as positive_integer
from ._model.constraints import positive_ordered as positive_ordered
from ._model.constraints import positive_semidefinite as positive_semidefinite
from ._model.constraints import real as real
from ._model.constraints import real_matrix as real_matrix
from ._model.constraints import real_vector as real_vector
from ._model.constraints import scaled_unit_lower_cholesky as scaled_unit_lower_cholesky
from ._model.constraints import simplex as simplex
from ._model.constraints import softplus_lower_cholesky as softplus_lower_cholesky
from ._model.constraints import softplus_positive as softplus_positive
from ._model.constraints import sphere as sphere
from ._model.constraints import transformed as transformed
from ._model.constraints import unit_interval as unit_interval
from ._model.constraints import zero_sum as zero_sum
