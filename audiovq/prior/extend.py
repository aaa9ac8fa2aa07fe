"""A prior that goes on from another one: new labels and new conditioners, everything else as it was."""

from __future__ import annotations

import torch
from torch import nn

from audiovq.prior.conditioners import LabelConditioner
from audiovq.prior.prior import Prior, PriorConfig, PriorSpec


def extend_vocabularies(old: dict[str, list[str]], new: dict[str, list[str]]) -> dict[str, list[str]]:
    """The values of each label in `new`: those known already keep their places, others follow, sorted."""
    return {name: [*old.get(name, []), *sorted(set(values) - set(old.get(name, [])))] for name, values in new.items()}


def told_of_labels(old: dict[str, list[str]], new: dict[str, list[str]]) -> str:
    """One line for the user: what became of the labels."""
    parts = []
    for name, values in new.items():
        added = [value for value in values if value not in old.get(name, [])]
        kept = f", behind {', '.join(old[name])}, which stay as they were" if old.get(name) else ""
        parts.append(f"{name}: {', '.join(added) or 'nothing'} is new{kept}")
    return "labels: " + ("; ".join(parts) or "none")


@torch.no_grad()
def extended(prior: Prior, config: PriorConfig, spec: PriorSpec) -> Prior:
    """A prior of `config` and `spec` with the weights of another, whose conditioners are the first of its own.

    Before it learns, it says what the old one says: a new value of a label begins as the row of "unknown", and a new
    conditioner begins by adding nothing when nothing is said, and little (a tenth of a code) for each value of a label.
    """
    network = Prior(config, spec)
    old = prior.state_dict()
    known = len(prior.conditioners)
    for i, module in enumerate(network.conditioners):
        if i >= known:
            _quiet(module)
        elif isinstance(module, LabelConditioner):
            name = f"conditioners.{i}.embedding.weight"
            n_new = len(module.embedding.weight) - len(old[name])
            old[name] = torch.cat([old[name], old[name][:1].expand(n_new, -1)])
    fresh = {
        k: v for k, v in network.state_dict().items() if k.startswith("conditioners.") and int(k.split(".")[1]) >= known
    }
    network.load_state_dict(old | fresh)
    return network


def _quiet(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()
    if isinstance(module, LabelConditioner):
        nn.init.normal_(module.embedding.weight[1:], std=0.05)
