"""A prior that starts from another one, with new labels and new conditioners."""

import torch
from torch import nn

from audiovq.prior.conditioners import LabelConditioner
from audiovq.prior.prior import Prior, PriorConfig
from audiovq.prior.spec import PriorSpec
from audiovq.utils.progress import listed

Vocabularies = dict[str, list[str]]  # the values of each label


def extend_vocabularies(old: Vocabularies, new: Vocabularies) -> Vocabularies:
    """The labels of `new`: known values of each keep their places, new ones follow, sorted."""
    known = {name: old.get(name, []) for name in new}
    return {name: [*known[name], *sorted(set(values) - set(known[name]))] for name, values in new.items()}


def describe_new_labels(old: Vocabularies, new: Vocabularies) -> str:
    """One line for the user: which values of which labels are new."""
    parts = []
    for name, values in new.items():
        known = old.get(name, [])
        added = listed([value for value in values if value not in known])
        parts.append(f"{name}: new {added}" + (f", known {listed(known)}" if known else ""))
    return "labels: " + ("; ".join(parts) or "none")


@torch.no_grad()
def extended(prior: Prior, config: PriorConfig, spec: PriorSpec) -> Prior:
    """A prior of `config` and `spec` with the weights of another one, whose conditioners come first. Before training
    it predicts nearly what the old one predicts. A new value of a label starts as a copy of "unknown". A new
    conditioner adds nothing while its condition is unknown; a new label's values add little at first."""
    network = Prior(config, spec)
    old, n_known = prior.state_dict(), len(prior.conditioners)
    for i, module in enumerate(network.conditioners):
        name = f"conditioners.{i}."
        if i >= n_known:
            for parameter in module.parameters():
                parameter.zero_()
            if isinstance(module, LabelConditioner):
                nn.init.normal_(module.embedding.weight[1:], std=0.05)
            old |= {f"{name}{key}": tensor for key, tensor in module.state_dict().items()}
        elif isinstance(module, LabelConditioner):
            rows = old[f"{name}embedding.weight"]
            n_new = len(module.embedding.weight) - len(rows)
            old[f"{name}embedding.weight"] = torch.cat([rows, rows[:1].expand(n_new, -1)])
    network.load_state_dict(old)
    return network
