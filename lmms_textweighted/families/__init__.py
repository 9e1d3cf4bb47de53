"""Checkpoint -> model and processor, whatever its format.

`loading` says what can be asked for, `llava` loads transformers' LLaVAs, `processor_family` its other kinds, and
`liuhaotian` checkpoints of the original `llava` package, with that package or without it.
"""

from __future__ import annotations

import logging

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.loading import (
    DEFAULT_CHECKPOINT,
    Loaded,
    LoadOptions,
    local_folder,
    looked_at_first,
    read_config,
    resolve,
)

__all__ = ["DEFAULT_CHECKPOINT", "LoadOptions", "Loaded", "load", "resolve"]

_logger = logging.getLogger(__name__)


@looked_at_first
def load(pretrained: str = DEFAULT_CHECKPOINT, options: LoadOptions | None = None) -> Loaded:
    """Load `pretrained`: `tiny` (the embedded model), a local folder or a hub name, in either format.

    The format is read off the checkpoint's config. transformers' own is loaded by transformers. liuhaotian's is loaded
    by the `llava` package where that is installed, and otherwise converted in memory; `options.loader` chooses.

    Raises CheckpointError when it is missing, out of reach or of no known kind, InputError for options that cannot be.
    """
    from lmms_textweighted.families import llava
    from lmms_textweighted.families.known import family_of_type
    from lmms_textweighted.families.liuhaotian import checkpoint, package
    from lmms_textweighted.families.processor_family import ProcessorFamily

    options = options or LoadOptions()
    folder = resolve(pretrained)
    config = read_config(pretrained, folder, options.revision)
    if not checkpoint.is_liuhaotian(config):
        if options.loader == "llava":
            raise InputError(
                f"loader=llava, but checkpoint {pretrained!r} is in transformers' format: leave loader out, or convert "
                f"it with `lmms-textweighted convert`"
            )
        if options.vision_tower:
            raise InputError(
                f"vision_tower is {options.vision_tower!r}, which is for checkpoints in liuhaotian format: this one "
                "brings its own, leave it out"
            )
        family = family_of_type(pretrained, config.get("model_type"))
        if issubclass(family, ProcessorFamily):
            return family.load(pretrained, folder, config, options)
        _check_no_limits(options)
        return llava.load(pretrained, folder, config, options)
    _check_no_limits(options)
    local = local_folder(folder, options.revision)
    if options.loader == "llava":
        return package.load(pretrained, local, config, options)
    if options.loader == "auto" and package.is_installed():
        try:
            return package.load(pretrained, local, config, options)
        except package.PackageError as error:
            _logger.warning(f"{pretrained} is converted in memory: {error}")
    elif options.loader == "auto":
        _logger.warning(f"{pretrained} is converted in memory: no llava package is installed ({package.HOW_TO_GET_IT})")
    return checkpoint.load(pretrained, local, config, options)


def _check_no_limits(options: LoadOptions) -> None:
    for name in options.picture_limits():
        raise InputError(f"{name} is given, but a LLaVA's pictures have no such limit: leave it out")
