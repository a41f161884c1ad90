"""Array aliases and the table of symbols: the one place where an axis gets its name.

Shapes are written with these axis names everywhere in the package (theory section 1):

=============  ======  ====================================================================
axis           symbol  meaning
=============  ======  ====================================================================
`width`        n       neurons of a finite network, or particles of the limit
`depth`        L       residual blocks
`batch`        B       samples of one query block
`samples`      P       samples of the task
`inputs`       d       input coordinates
`outputs`      c       network outputs
`steps`        K       training steps
`capacity`     M       orthonormal vectors that a basis can hold, at most steps x batch are needed
=============  ======  ====================================================================

A block of vectors is stored as rows, `(batch, width)`: reductions over the width then run along contiguous
memory. `<a, b> = a . b / n` is the inner product of every orthonormality and kernel in the package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

Vectors = Float[Array, "batch width"]
Scalar = Float[Array, ""]
Index = Int[Array, ""]
Flag = Bool[Array, ""] | bool
Key = PRNGKeyArray
PyTree = Any
ScalarFunction = Callable[[Array], Array]

__all__ = [
    "Array",
    "Bool",
    "Flag",
    "Float",
    "Index",
    "Int",
    "Key",
    "PyTree",
    "Scalar",
    "ScalarFunction",
    "UInt32",
    "Vectors",
]
