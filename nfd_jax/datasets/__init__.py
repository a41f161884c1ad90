"""Data sets as tasks: handwritten digits that come with scikit-learn, CIFAR-10 from its files, Gaussian teachers."""

from nfd_jax.datasets._gaussian import gaussian
from nfd_jax.datasets._images import cifar10, digits

__all__ = ["cifar10", "digits", "gaussian"]
