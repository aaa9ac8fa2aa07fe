"""What a studio allows, and requests that it refuses."""

import math
from dataclasses import dataclass

MEGABYTE = 1 << 20
MANY = 20  # visitors


class Refused(ValueError):
    """A request that cannot be met. `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Limits of a studio. On one's own machine all visitors count as one."""

    max_seconds: float = 120.0  # of a piece, and of the part of a recording that is used
    max_upload_mb: float = 50.0
    max_takes: int = 4
    max_versions: int = 200  # of a project
    max_projects: int = 200  # of a visitor; and of all together, MANY times as many, as with the next one
    max_waiting: int = 10  # jobs of a visitor
    quota_mb: float = 2000.0  # the projects of a visitor
    total_mb: float = 20000.0  # the projects of all visitors
    stall_seconds: float = 20.0  # an upload without a byte for so long is dropped
    slowest_upload_seconds: float = 1800.0

    def check_seconds(self, seconds: float) -> None:
        """Raises ValueError for a piece that is too long or has no length."""
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"the length of a piece must be above 0 s; found {seconds:g}")
        if seconds > self.max_seconds + 1e-6:
            raise ValueError(
                f"a piece may be up to {self.max_seconds:g} s long here, and this would be {seconds:.1f} s "
                "(the option --max-seconds of audiovq studio allows more)"
            )
