"""Load a model with the engine for its kind."""

import logging

from intel_ft.artifacts.resolve import Artifact
from intel_ft.errors import UserError
from intel_ft.runtimes.language_model import LanguageModel, RewardModel

logger = logging.getLogger(__name__)


def require_language_model(artifact: Artifact) -> None:
    """Raise UserError for a reward model."""
    if artifact.is_reward_model:
        raise UserError(
            f"{artifact.location}: this is a reward model, which scores answers but does not write"
            " them: measure it with `intel-ft eval`"
        )


def open_model(
    artifact: Artifact,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LanguageModel:
    """Load `artifact` with the engine for its kind: OpenVINO for an IR, otherwise torch.

    `dtype` ("bfloat16", "float32" or "auto", see load_torch) applies to torch; an IR has its own
    types. Raises UserError for a reward model.
    """
    require_language_model(artifact)
    if artifact.kind == "openvino":
        from intel_ft.runtimes.openvino_lm import load_openvino

        return load_openvino(artifact)
    from intel_ft.models.exportable import why_not_exportable
    from intel_ft.runtimes.torch_lm import load_torch

    model = load_torch(
        artifact, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    reason = why_not_exportable(model.model.config.model_type)
    logger.info(
        "%s runs with torch: %s",
        artifact.location,
        reason or "`intel-ft export` converts it for OpenVINO",
    )
    return model


def open_reward(artifact: Artifact, *, trust_remote_code: bool = False) -> RewardModel:
    """Load a reward model with the engine for its kind: OpenVINO for an IR, otherwise torch."""
    if artifact.kind == "openvino":
        from intel_ft.runtimes.openvino_reward import load_openvino_reward

        return load_openvino_reward(artifact)
    from intel_ft.runtimes.torch_reward import load_reward

    return load_reward(artifact, trust_remote_code=trust_remote_code)
