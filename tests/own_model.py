"""A residual network written in plain Equinox, which knows nothing of this package."""

import equinox as eqx
import jax
import jax.numpy as jnp


class Block(eqx.Module):
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width, key):
        up, down = jax.random.split(key)
        self.up = eqx.nn.Linear(width, width, key=up)
        self.down = eqx.nn.Linear(width, width, use_bias=False, key=down)


class Network(eqx.Module):
    embed: eqx.nn.Linear
    blocks: list[Block]
    head: eqx.nn.Linear
    branch: float = eqx.field(static=True)

    def __init__(self, key, inputs, width, depth, outputs, branch):
        first, last, *others = jax.random.split(key, depth + 2)
        self.embed = eqx.nn.Linear(inputs, width, key=first)
        self.blocks = [Block(width, key) for key in others]
        self.head = eqx.nn.Linear(width, outputs, key=last)
        self.branch = branch

    def features(self, inputs):
        stream = jax.vmap(self.embed)(inputs)
        found = {"embedded": stream}
        for number, block in enumerate(self.blocks):
            up = jax.vmap(block.up)(stream)
            down = jax.vmap(block.down)(jnp.tanh(up))
            stream = stream + self.branch * down
            if number == 0:
                found |= {"up": up, "down": down}
        return found | {"stream": stream, "outputs": jax.vmap(self.head)(stream)}

    def __call__(self, inputs):
        return self.features(inputs)["outputs"]


ROLES = {
    ".embed.*": "input",
    ".blocks[*].up.weight": "inner",
    ".blocks[*].down.weight": "hidden",
    ".blocks[*].up.bias": "bias",
    ".head.weight": "readout",
    ".head.bias": "unscaled",
}
