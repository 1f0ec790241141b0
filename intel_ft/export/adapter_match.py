"""An adapter on its base at another place than in training."""

from dataclasses import replace

from intel_ft.artifacts.resolve import Artifact
from intel_ft.errors import UserError
from intel_ft.models.adapter_match import require_matching_base
from intel_ft.runtimes.language_model import base_config


def with_base(artifact: Artifact, base: str, *, trust_remote_code: bool) -> Artifact:
    """The adapter on its base at another place; UserError if that is another model."""
    if artifact.kind != "adapter":
        raise UserError(
            f"{artifact.location}: --base applies only to adapters, and this is not one"
        )
    moved = replace(artifact, base_model=base, base_revision=None)
    require_matching_base(artifact, base_config(moved, trust_remote_code=trust_remote_code))
    return moved
