"""nfd_jax: mean-field feature dynamics of very wide, very deep networks, beside the networks themselves."""

from nfd_jax import analytic, datasets, observables, parametrization, statistics
from nfd_jax.models import MLP, ResNet
from nfd_jax.parametrization import Role, alpha_gamma
from nfd_jax.solvers.limit import solve_limit
from nfd_jax.solvers.network import solve_network
from nfd_jax.solvers.networks import train_networks
from nfd_jax.solvers.sweep import sweep
from nfd_jax.solvers.trajectory import Trajectory
from nfd_jax.task import Task
from nfd_jax.tools.coordinate_check import coordinate_check
from nfd_jax.tools.scale_rates import scale_rates
from nfd_jax.tools.suggest_learning_rate import suggest_learning_rate

__all__ = [
    "MLP",
    "ResNet",
    "Role",
    "Task",
    "Trajectory",
    "alpha_gamma",
    "analytic",
    "coordinate_check",
    "datasets",
    "observables",
    "parametrization",
    "scale_rates",
    "solve_limit",
    "solve_network",
    "statistics",
    "suggest_learning_rate",
    "sweep",
    "train_networks",
]
