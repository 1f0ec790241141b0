"""Run a reward model in torch on this CPU."""

from typing import Any

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import Artifact
from intel_ft.gc_pause import gc_paused
from intel_ft.runtimes.language_model import base_config, tokenizer_config


def load_reward(
    artifact: Artifact, *, dtype: str = "auto", trust_remote_code: bool = False
) -> "TorchReward":
    """Load the reward model `artifact`, a merged one or an adapter; dtype as for `load_torch`."""
    with gc_paused():
        import torch

        from intel_ft.backends.cpu import fastest_dtype
        from intel_ft.models.load import load_base, load_tokenizer
        from intel_ft.models.reward import load_reward_model, with_score
        from intel_ft.models.saved_adapter import apply_adapter

    config = base_config(artifact, trust_remote_code=trust_remote_code)
    chosen = fastest_dtype()[0] if dtype == "auto" else getattr(torch, dtype)
    if artifact.kind == "adapter":
        model = apply_adapter(with_score(load_base(config, chosen)), artifact.folder)
    else:
        model = load_reward_model(config, chosen)
    tokenizer = load_tokenizer(tokenizer_config(artifact, trust_remote_code=trust_remote_code))
    return TorchReward(model, tokenizer)


class TorchReward:
    """A `RewardModel`, one text at a time."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def score(self, tokens: npt.NDArray[np.int32]) -> float:
        """The reward of a text, int32 [tokens], at its last token.

        The head multiplies in float32, as in training: in bf16, close answers would score alike.
        """
        from intel_ft.models.targets import output_layer

        weight = output_layer(self.model).weight.detach().float().numpy()
        return float(self.hidden_states(tokens)[-1] @ weight[0])

    def hidden_states(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """What the score is computed from at each token, float32 [tokens, hidden]."""
        import torch

        with torch.inference_mode():
            inputs = torch.from_numpy(tokens.astype(np.int64))[None]
            base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
            output = base.get_decoder()(input_ids=inputs, use_cache=False)
        states: npt.NDArray[np.float32] = output[0][0].float().numpy()
        return states
