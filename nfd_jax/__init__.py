"""nfd_jax: mean-field feature dynamics of very wide, very deep networks, beside the networks themselves."""

from nfd_jax import analytic, datasets, observables, parametrization, statistics
from nfd_jax.architecture import MLP, ResNet
from nfd_jax.coordinates import coordinate_check
from nfd_jax.limit import solve_limit
from nfd_jax.network import solve_network
from nfd_jax.parametrization import Role, alpha_gamma
from nfd_jax.scaling import scale_rates
from nfd_jax.sharpness import suggest_learning_rate
from nfd_jax.sweeps import sweep
from nfd_jax.task import Task
from nfd_jax.training import train_networks
from nfd_jax.trajectory import Trajectory

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
