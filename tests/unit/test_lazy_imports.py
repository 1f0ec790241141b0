"""TorchDynamo stays out of a process that compiles nothing, and comes when it is needed."""

import subprocess
import sys

import pytest

_START = """
import sys
from intel_ft.optional_packages import import_peft
import_peft()
import torch, transformers, intel_ft.training.run
def loaded():
    return "torch._dynamo.eval_frame" in sys.modules
assert not loaded()
"""
_STEP = """
layer = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(layer.parameters())
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
from accelerate.utils import is_compiled_module
assert not is_compiled_module(layer)
unwanted = "sympy datasets pandas torch.distributed.fsdp torch.distributed.tensor".split()
assert not [name for name in unwanted if name in sys.modules]
import peft
base = transformers.AutoModelForCausalLM.from_config(
    transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
    )
)
from intel_ft.optional_packages import without_bitsandbytes
with without_bitsandbytes():
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"]))
store = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
torch.distributed.destroy_process_group()
unwanted = "sympy datasets pandas torch.distributed.fsdp torch.distributed.tensor".split()
assert not [name for name in unwanted if name in sys.modules]
assert not loaded()
"""
_USES = {
    "compiled": """
double = torch.compile(lambda x: 2 * x, backend="eager")
assert double(torch.ones(2)).tolist() == [2, 2]
""",
    "excluded from compilation": """
calls = []
@torch.compiler.disable
def add(x):
    calls.append(torch.compiler.is_compiling())
    return x + 1
compiled = torch.compile(lambda x: add(x) * 2, backend="eager")
assert compiled(torch.ones(2)).tolist() == [4, 4]
assert calls == [False]
""",
    "a submodule": """
import torch._dynamo.utils as utils
from torch._dynamo import utils as same
assert utils is same is sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
assert utils.__spec__.loader.get_filename().endswith("utils.py")
""",
    "a mask": """
from transformers.masking_utils import TransformGetItemToIndex
with TransformGetItemToIndex():
    pass
""",
    "tensors in parts": """
assert torch.distributed.tensor.Shard(0) == torch.distributed.tensor.Shard(0)
assert "torch.distributed.tensor" in sys.modules
torch._dynamo.reset()
""",
    "a name": "torch._dynamo.config.suppress_errors = False",
}


@pytest.mark.parametrize("use", _USES)
def test_dynamo_is_imported_at_its_first_use(use):
    end = 'assert loaded() and "intel_ft" not in (torch._dynamo.__doc__ or "")'
    program = "\n".join([_START, _STEP, _USES[use], end])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_dynamo_that_is_there_stays():
    program = "import torch._dynamo as before\n"
    program += "from intel_ft.optional_packages import import_peft\nimport_peft()\n"
    program += "import torch\nassert torch._dynamo is before and before.config"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
