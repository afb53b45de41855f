"""Automatic variational guides for probabilistic models, as Equinox modules."""

from . import constraints as constraints
from . import handlers as handlers
from . import plot as plot
from ._family.base import AbstractFamily as AbstractFamily
from ._fit.checkpoint import Checkpoint as Checkpoint
from ._fit.fit import fit as fit
from ._fit.restarts import Restarts as Restarts
from ._fit.restarts import fit_restarts as fit_restarts
from ._fit.result import FitResult as FitResult
from ._fit.result import NonFiniteError as NonFiniteError
from ._fit.save import load as load
from ._fit.save import save as save
from ._guide.dais import AutoDAIS as AutoDAIS
from ._guide.delta import AutoDelta as AutoDelta
from ._guide.flow import AutoBNAFNormal as AutoBNAFNormal
from ._guide.flow import AutoIAFNormal as AutoIAFNormal
from ._guide.flow import AutoNSFNormal as AutoNSFNormal
from ._guide.flow import AutoRealNVPNormal as AutoRealNVPNormal
from ._guide.gaussian import (
    AutoBatchedLowRankMultivariateNormal as AutoBatchedLowRankMultivariateNormal,
)
from ._guide.gaussian import AutoBatchedMultivariateNormal as AutoBatchedMultivariateNormal
from ._guide.gaussian import AutoDiagonalNormal as AutoDiagonalNormal
from ._guide.gaussian import AutoLowRankMultivariateNormal as AutoLowRankMultivariateNormal
from ._guide.gaussian import AutoMultivariateNormal as AutoMultivariateNormal
from ._guide.guide import AutoContinuous as AutoContinuous
from ._guide.guide import AutoGuide as AutoGuide
from ._guide.laplace import AutoLaplaceApproximation as AutoLaplaceApproximation
from ._guide.list import AutoGuideList as AutoGuideList
from ._guide.normal import AutoNormal as AutoNormal
from ._guide.program import program as program
from ._guide.semi_dais import AutoSemiDAIS as AutoSemiDAIS
from ._guide.surrogate_dais import (
    AutoSurrogateLikelihoodDAIS as AutoSurrogateLikelihoodDAIS,
)
from ._model.adapters import from_numpyro as from_numpyro
from ._model.batch import Batch as Batch
from ._model.bijectors import biject_to as biject_to
from ._model.improper import ImproperUniform as ImproperUniform
from ._model.log_density import from_log_density as from_log_density
from ._model.model import AbstractModel as AbstractModel
from ._model.points import log_joint as log_joint
from ._model.primitives import deterministic as deterministic
from ._model.primitives import factor as factor
from ._model.primitives import param as param
from ._model.primitives import plate as plate
from ._model.primitives import prng_key as prng_key
from ._model.primitives import sample as sample
from ._model.primitives import subsample as subsample
from ._model.static import static as static
from ._model.strategies import init_to_feasible as init_to_feasible
from ._model.strategies import init_to_mean as init_to_mean
from ._model.strategies import init_to_median as init_to_median
from ._model.strategies import init_to_sample as init_to_sample
from ._model.strategies import init_to_uniform as init_to_uniform
from ._model.strategies import init_to_value as init_to_value
from ._model.supports import support as support
from ._model.target import Block as Block
from ._model.target import Draw as Draw
from ._model.target import Target as Target
from ._model.trace import Bijection as Bijection
from ._model.trace import LatentSpec as LatentSpec
from ._model.trace import Plate as Plate
from ._model.trace import Site as Site
from ._model.trace import Trace as Trace
from ._objective.elbo import ELBO as ELBO
from ._objective.importance import IWELBO as IWELBO
from ._objective.importance import RenyiELBO as RenyiELBO
from ._objective.mean_field import MeanFieldELBO as MeanFieldELBO
from ._posterior.calibration import Calibration as Calibration
from ._posterior.calibration import calibrate as calibrate
from ._posterior.diagnose import Diagnosis as Diagnosis
from ._posterior.diagnose import diagnose as diagnose
from ._posterior.exchange import from_numpyro_params as from_numpyro_params
from ._posterior.exchange import to_numpyro_params as to_numpyro_params
from ._posterior.log_likelihood import log_likelihood as log_likelihood
from ._posterior.pareto import psis as psis
from ._posterior.predictive import Predictive as Predictive
from ._posterior.samplers import LowRank as LowRank
from ._posterior.samplers import NeuTraDensity as NeuTraDensity
from ._posterior.samplers import UnconstrainedDensity as UnconstrainedDensity
from ._posterior.to_arviz import to_arviz as to_arviz
from ._version import __version__ as __version__
