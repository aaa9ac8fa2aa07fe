"""Completes a recipe with the settings of the pretrained models that its training starts from."""

from typing import Any

from audiovq import config as conf
from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.locate import prior_folders, resolve_model, tokenizer_folder
from audiovq.prior.prior import Prior, PriorConfig, SamplingConfig
from audiovq.recipe import PriorStage, Recipe, first_difference
from audiovq.tokenizer.vqvae import VQVAE

# Settings of a prior that only affect training, so that a recipe may change them.
TRAINING_SETTINGS = ("dropout", "unconditional_rate")
PREFIX_CONDITIONERS = ("text", "infill")


def pretrained_tokenizer(source: str) -> VQVAE:
    return checkpoint.load_tokenizer(tokenizer_folder(resolve_model(source)))


def pretrained_prior(source: str, level: int, tokenizer_hash: str) -> tuple[Prior, SamplingConfig]:
    """The prior of a level and its settings; ValueError if there is none, or one for other codes."""
    folders = prior_folders(resolve_model(source))
    if level >= len(folders):
        found = f"found {len(folders)} priors"
        raise ValueError(f"priors: from_pretrained: expected a prior for level {level} in {source}, {found}")
    prior, sampling = checkpoint.load_prior(folders[level])
    if prior.spec.tokenizer_hash != tokenizer_hash:
        expected, found = tokenizer_hash[:12], f"found one of {prior.spec.tokenizer_hash[:12]} in {source}"
        problem = f"expected a prior of tokenizer {expected}, {found}"
        raise ValueError(f"priors: from_pretrained: {problem}; take tokenizer and priors from the same model")
    return prior, sampling


def adopt_pretrained(recipe: Recipe) -> Recipe:
    """The recipe with the model settings of its pretrained tokenizer and priors. Raises ValueError if there
    is no such model, or for a setting in the recipe that contradicts it."""
    source = recipe.tokenizer.from_pretrained
    if source is None:
        return recipe
    network = pretrained_tokenizer(source)
    n_levels = network.config.n_levels
    if "model" in recipe.tokenizer.model_fields_set:
        settings = recipe.tokenizer.model.model_dump(exclude_unset=True)
        _check_same("tokenizer.model", settings, network.config.model_dump())
    if (found := len(recipe.priors)) not in {0, 1, n_levels}:
        raise ValueError(f"priors: expected none, 1 or {n_levels} (the levels of {source}), found {found}")
    # One entry may stand for all levels, but pretrained priors may differ in size and need one each.
    levels = range(n_levels if any(stage.from_pretrained for stage in recipe.priors) else len(recipe.priors))
    identity = tokenizer_hash(network)
    priors = tuple(_adopt_prior(recipe.prior(level), level, identity) for level in levels)
    tokenizer = recipe.tokenizer.model_copy(update={"model": network.config})
    adopted = recipe.model_copy(update={"tokenizer": tokenizer, "priors": priors})
    return conf.build(Recipe, adopted.model_dump(), recipe.name)


def _adopt_prior(stage: PriorStage, level: int, tokenizer_hash: str) -> PriorStage:
    """The stage with the settings of its pretrained prior, if it has one."""
    if stage.from_pretrained is None:
        return stage
    place = f"priors.{level}.model"
    prior, sampling = pretrained_prior(stage.from_pretrained, level, tokenizer_hash)
    pretrained = prior.config.model_dump()
    settings = stage.model.model_dump(exclude_unset=True)
    wanted = settings.pop("conditioners", ())
    # Training settings replace those of the pretrained prior; all other settings must be the same.
    for new, old in ((settings, pretrained), (settings.get("transformer", {}), pretrained["transformer"])):
        old.update({key: new.pop(key) for key in TRAINING_SETTINGS if key in new})
    _check_same(place, settings, pretrained)
    # The pretrained conditioners, with the recipe's dropout and rate, then the recipe's new conditioners. A
    # pretrained conditioner cannot be removed, but a dropout of 1 silences it.
    merged = {(c["kind"], c.get("name")): dict(c) for c in pretrained["conditioners"]}
    for settings in wanted:
        kind = settings["kind"]
        key = kind, settings.get("name", "genre") if kind == "label" else None
        if key in merged:
            merged[key] |= {name: settings[name] for name in ("dropout", "rate") if name in settings}
        elif settings.get("dropout") == 1:
            continue  # no conditioner to silence
        elif kind in PREFIX_CONDITIONERS:
            problem = f"a {kind} conditioner cannot be added to a prior that has none"
            reason = "because its attention was trained without a prefix; leave it out, or train the priors anew"
            raise ValueError(f"{place}.conditioners: {problem}, {reason}")
        else:
            merged[key] = dict(settings)
    pretrained["conditioners"] = list(merged.values())
    sampling = sampling.model_copy(update=stage.sampling.model_dump(exclude_unset=True))
    return stage.model_copy(update={"model": conf.build(PriorConfig, pretrained, place), "sampling": sampling})


def _check_same(place: str, settings: dict[str, Any], pretrained: dict[str, Any]) -> None:
    """Raises ValueError if a setting of the recipe differs from the pretrained model's."""
    if difference := first_difference(pretrained, conf.merge(pretrained, settings), place):
        raise ValueError(f"{difference}: expected the setting of the pretrained model, or none")
