"""nfd_jax: mean-field feature dynamics of very wide, very deep networks, beside the networks themselves."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

from nfd_jax import analytic, datasets, observables, parametrization, statistics
from nfd_jax._checks import Outcome
from nfd_jax.dynamics.autodiff import Autodiff
from nfd_jax.dynamics.base import AbstractDynamics, Record
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.dynamics.problem import Problem
from nfd_jax.dynamics.snapshot import Snapshot
from nfd_jax.models import MLP, ResNet
from nfd_jax.optimizers import Optimizer
from nfd_jax.parametrization import Parametrization, Power, Role, Scaling, alpha_gamma
from nfd_jax.runtime.parts import Incomplete
from nfd_jax.seeds import seed_key
from nfd_jax.solvers.limit import limit_dynamics, solve_limit
from nfd_jax.solvers.networks import network_dynamics, solve_network, train_networks
from nfd_jax.solvers.sweep import sweep
from nfd_jax.solvers.trajectory import ErrorBars, HeldOut, Trajectory
from nfd_jax.task import Task
from nfd_jax.tools._coordinates import Coordinate, CoordinateCheck
from nfd_jax.tools._stability import StableRate, WidthRates
from nfd_jax.tools.balance_scales import BalancedScales, balance_scales
from nfd_jax.tools.coordinate_check import coordinate_check
from nfd_jax.tools.feature_spectrum import Spectrum, feature_spectrum, jacobian_spectrum
from nfd_jax.tools.feature_speed import FeatureSpeed, feature_speed
from nfd_jax.tools.feature_speed_control import FeatureSpeedState, feature_speed_control
from nfd_jax.tools.network_speed import network_speed
from nfd_jax.tools.scale_rates import ScaledParameter, ScaledRates, scale_rates
from nfd_jax.tools.stable_rate import stable_rate
from nfd_jax.tools.suggest_learning_rate import SuggestedRate, suggest_learning_rate
from nfd_jax.training import Training
from nfd_jax.verdict import Verdict

if _TYPE_CHECKING:
    from types import ModuleType as _ModuleType

    from nfd_jax import plotting

__version__ = _version("nfd_jax")

__all__ = [
    "MLP",
    "AbstractDynamics",
    "Autodiff",
    "BalancedScales",
    "Conditioned",
    "Coordinate",
    "CoordinateCheck",
    "ErrorBars",
    "FeatureSpeed",
    "FeatureSpeedState",
    "HeldOut",
    "Incomplete",
    "Optimizer",
    "Outcome",
    "Parametrization",
    "Power",
    "Problem",
    "Record",
    "ResNet",
    "Role",
    "ScaledParameter",
    "ScaledRates",
    "Scaling",
    "Snapshot",
    "Spectrum",
    "StableRate",
    "SuggestedRate",
    "Task",
    "Training",
    "Trajectory",
    "Verdict",
    "WidthRates",
    "__version__",
    "alpha_gamma",
    "analytic",
    "balance_scales",
    "coordinate_check",
    "datasets",
    "feature_spectrum",
    "feature_speed",
    "feature_speed_control",
    "jacobian_spectrum",
    "limit_dynamics",
    "network_dynamics",
    "network_speed",
    "observables",
    "parametrization",
    "plotting",
    "scale_rates",
    "seed_key",
    "solve_limit",
    "solve_network",
    "stable_rate",
    "statistics",
    "suggest_learning_rate",
    "sweep",
    "train_networks",
]


def __getattr__(name: str) -> "_ModuleType":
    if name == "plotting":  # brings matplotlib along, which is slow to import
        return _import_module("nfd_jax.plotting")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "plotting"]
