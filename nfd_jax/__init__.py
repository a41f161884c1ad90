"""nfd_jax: mean-field feature dynamics of very wide, very deep networks, beside the networks themselves."""

from nfd_jax import analytic, datasets, observables
from nfd_jax.architecture import MLP, ResNet
from nfd_jax.limit import solve_limit
from nfd_jax.network import solve_network
from nfd_jax.parametrization import alpha_gamma
from nfd_jax.task import Task
from nfd_jax.training import train_networks
from nfd_jax.trajectory import Trajectory

__all__ = [
    "MLP",
    "ResNet",
    "Task",
    "Trajectory",
    "alpha_gamma",
    "analytic",
    "datasets",
    "observables",
    "solve_limit",
    "solve_network",
    "train_networks",
]
