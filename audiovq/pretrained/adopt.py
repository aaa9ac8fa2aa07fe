"""What a recipe takes from models that are there: a frozen tokenizer, and priors to go on from."""

from __future__ import annotations

from typing import Any

from audiovq import config as conf
from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.locate import prior_folders, resolve_model
from audiovq.prior.prior import Prior, PriorConfig
from audiovq.recipe import PriorStage, Recipe, first_difference
from audiovq.tokenizer.vqvae import VQVAE

# What may differ from the prior that training goes on from: settings of the training, which shape no weight.
OWN = {"dropout", "unconditional_rate"}


def pretrained_tokenizer(source: str) -> VQVAE:
    """Raises ValueError if there is none."""
    place = resolve_model(source)
    return checkpoint.load_tokenizer(place / "tokenizer" if (place / "tokenizer").is_dir() else place)


def pretrained_prior(source: str, level: int, tokenizer_hash: str) -> Prior:
    """The prior of a level. Raises ValueError if there is none, or one for other codes."""
    folders = prior_folders(resolve_model(source))
    if level >= len(folders):
        raise ValueError(
            f"priors: from_pretrained: expected a prior for level {level} in {source}, found {len(folders)} priors"
        )
    prior, _ = checkpoint.load_prior(folders[level])
    if prior.spec.tokenizer_hash != tokenizer_hash:
        raise ValueError(
            f"priors: from_pretrained: expected a prior of tokenizer {tokenizer_hash[:12]}, found one of "
            f"{prior.spec.tokenizer_hash[:12]} in {source}; take tokenizer and priors from the same model"
        )
    return prior


def adopt_pretrained(recipe: Recipe) -> Recipe:
    """The recipe with the models that it goes on from in the place of its own settings.

    Raises:
        ValueError: no such model, or a setting that contradicts it.
    """
    source = recipe.tokenizer.from_pretrained
    if source is None:
        return recipe
    network = pretrained_tokenizer(source)
    if "model" in recipe.tokenizer.model_fields_set:
        _agree("tokenizer.model", recipe.tokenizer.model.model_dump(exclude_unset=True), network.config.model_dump())
    if len(recipe.priors) not in {1, network.config.n_levels}:
        raise ValueError(
            f"priors: expected 1 or {network.config.n_levels} (one a level of {source}), found {len(recipe.priors)}"
        )
    levels = range(network.config.n_levels if any(p.from_pretrained for p in recipe.priors) else len(recipe.priors))
    identity = tokenizer_hash(network)
    priors = tuple(_adopt_prior(recipe.prior(level), level, identity) for level in levels)
    tokenizer = recipe.tokenizer.model_copy(update={"model": network.config})
    adopted = recipe.model_copy(update={"tokenizer": tokenizer, "priors": priors})
    return conf.build(Recipe, adopted.model_dump(), recipe.name)


def _adopt_prior(stage: PriorStage, level: int, tokenizer_hash: str) -> PriorStage:
    if stage.from_pretrained is None:
        return stage
    theirs = pretrained_prior(stage.from_pretrained, level, tokenizer_hash).config
    said = stage.model.model_dump(exclude_unset=True)
    asked = said.pop("conditioners", ())
    own = {key: said.pop(key) for key in OWN & said.keys()}
    own_transformer = {key: said["transformer"].pop(key) for key in OWN & said.get("transformer", {}).keys()}
    content = theirs.model_dump()
    _agree(f"priors.{level}.model", said, content)
    content |= own
    content["transformer"] |= own_transformer
    content["conditioners"] = _join(content["conditioners"], asked, level)
    return stage.model_copy(update={"model": conf.build(PriorConfig, content, f"priors.{level}.model")})


def _join(theirs: Any, asked: Any, level: int) -> list[dict[str, Any]]:
    """Their conditioners, which stay, with the recipe's dropout (1 silences one); behind them those that are new."""
    joined = {(c["kind"], c.get("name")): dict(c) for c in theirs}
    with_prefix = {"text", "infill"}
    for conditioner in asked:
        c = {"kind": conditioner["kind"], **conditioner}
        key = c["kind"], c.get("name", "genre") if c["kind"] == "label" else None
        if key in joined:
            joined[key] |= {k: v for k, v in c.items() if k in {"dropout", "rate"}}
        elif c.get("dropout") == 1:
            continue  # there is nothing to silence
        elif c["kind"] in with_prefix:
            raise ValueError(
                f"priors.{level}.model.conditioners: a {c['kind']} conditioner cannot be added to a prior that has none, because "
                "its attention was trained without a prefix; leave it out, or train the priors anew"
            )
        else:
            joined[key] = c
    return list(joined.values())


def _agree(place: str, said: Any, theirs: Any) -> None:
    """Raises ValueError if the recipe says something else than the model that it goes on from."""
    if isinstance(said, dict) and isinstance(theirs, dict):
        for key in said:
            _agree(f"{place}.{key}", said[key], theirs.get(key))
    elif (difference := first_difference(theirs, said)) is not None:
        raise ValueError(
            f"{place}: expected what the pretrained model has, or nothing, found {difference.lstrip(': ')}"
        )
