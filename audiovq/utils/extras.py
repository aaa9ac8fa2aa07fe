"""Packages of the extras, which an installation may lack."""

import importlib.util


def require(feature: str, *packages: str, install: str) -> None:
    """Raises ValueError for the first package that is missing; `install` is the command that adds all of them."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{feature}: the package {name} is missing; {install}")
