"""An estimate as lines to print."""

from typing import Any


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The plan to print: a line for each stage, and what to change below it."""
    lines = [
        f"{plan['recipe']} on {plan['devices']} × {plan['device']}, {_gb(plan['memory_bytes'])} of memory each; "
        f"{plan['music_hours']:.2g} hours of music"
    ]
    for stage in plan["stages"]:
        time, disk = _hours(stage["hours"]), f"{_gb(stage['disk_bytes'])} of disk"
        if stage["stage"] == "codes":
            lines.append(f"codes: {time} for {stage['codes']:,} codes; {disk}")
            continue
        lines.append(
            f"{stage['stage']}: {stage['parameters'] / 1e6:,.3g} million weights; "
            f"{_gb(stage['memory_bytes'])} of memory; {time} for {stage['steps']} steps of {stage['seconds_a_step']:.2g} s; {disk}"
        )
        if not stage["fits"]:
            size, change = stage["size_that_fits"], "use a smaller network or crop, or more devices with sharded"
            advice = f"set {stage['key']}.device_batch_size to {size}" if size else change
            lines.append(f"    does not fit into the memory: {advice}")
        if "codes" in stage:
            lines.append(f"    {_weights_and_codes(stage)}")
    fits = "everything fits" if plan["fits"] else "not everything fits with these settings"
    lines.append(f"together: {_hours(plan['hours'])}, at most {_gb(plan['disk_bytes'])} of disk; {fits}")
    lines.append(
        f"assumed: {plan['flops'] / 1e9:,.0f} GFLOPS in each device, no waiting; on CPUs within a factor of two"
    )
    return lines


def too_large(plan: dict[str, Any]) -> list[str]:
    """A line for each prior that is far too large for the music."""
    return [f"{stage['stage']}: {_weights_and_codes(stage)}" for stage in plan["stages"] if "fitting" in stage]


def _weights_and_codes(stage: dict[str, Any]) -> str:
    words = f"{stage['codes']:,} codes of music, {stage['weights_per_code']:,.1f} weights for each"
    if "fitting" not in stage:
        return words
    advice = f"more music, or a size that fits: {stage['fitting']}"
    return f"{words}: far too large, it would learn the music by heart; {advice}"


def _gb(n: float) -> str:
    return f"{n / 1e9:.3g} GB" if n >= 1e8 else f"{n / 1e6:.3g} MB"


def _hours(hours: float) -> str:
    if hours > 72:
        return f"{hours:,.0f} hours ({hours / 24:,.0f} days)"
    return f"{hours:.2g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"
