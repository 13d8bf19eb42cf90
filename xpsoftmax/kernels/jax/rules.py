"""Functions with derivative rules of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def with_rule(function: Callable[..., Any], rule: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return the function with a rule for its derivative: from primals and tangents to those of the result.

    A rule gets all arguments of its function, and `nondiff_argnums` first.
    """
    symbolic_zeros = options.pop("symbolic_zeros", False)
    function_with_rule = jax.custom_jvp(function, **options)
    function_with_rule.defjvp(rule, symbolic_zeros=symbolic_zeros)
    return function_with_rule  # type: ignore[no-any-return]
