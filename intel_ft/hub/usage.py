"""How to run what was published, each runtime's own few lines; called from hub.card."""

from typing import Any

from intel_ft.artifacts.resolve import Artifact
from intel_ft.hub.metadata import name_of

_INTEL_FT = """\
With intel_ft, which writes prompts as in training:

```sh
hf download {repo} --local-dir {name}
intel-ft chat {name}
```"""

_ADAPTER = """\
With PEFT:

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{repo}", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
```"""

_MERGED = """\
With Transformers (vLLM and GGUF converters read the same files):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="bfloat16")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
```"""

_OPTIMUM = """\
With Optimum (`pip install optimum-intel[openvino]`):

```python
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

model = OVModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
{inputs}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```"""

_GENAI = """\
With OpenVINO GenAI (`pip install openvino-genai huggingface_hub`):

```python
from huggingface_hub import snapshot_download
import openvino_genai

pipeline = openvino_genai.LLMPipeline(snapshot_download("{repo}"), "CPU")
print(pipeline.generate({call}))
```"""

_GENAI_ADAPTERS = """\
With OpenVINO GenAI (`pip install openvino-genai huggingface_hub`), one of the adapters at a time:

```python
from huggingface_hub import snapshot_download
import openvino_genai

folder = snapshot_download("{repo}")
adapter = openvino_genai.AdapterConfig(openvino_genai.Adapter(f"{{folder}}/{file}"), {alpha})
pipeline = openvino_genai.LLMPipeline(folder, "CPU", adapters=adapter)
print(pipeline.generate({call}))
```"""

_OVMS = """\
With OpenVINO Model Server:

```sh
hf download {repo} --local-dir models/{name}
docker run --rm -p 8000:8000 -v "$PWD/models:/models:ro" openvino/model_server:latest \\
    --model_path /models/{name} --model_name {name} --rest_port 8000
curl http://localhost:8000/v3/{route} -H "Content-Type: application/json" \\
    -d '{{"model": "{name}", {body}}}'
```"""


_CHAT = {
    "inputs": """\
question = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(
    question, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)""",
    "call": '"Hello", max_new_tokens=100',
    "route": "chat/completions",
    "body": '"messages": [{"role": "user", "content": "Hello"}]',
}
_PROMPT = {
    "inputs": 'inputs = tokenizer(prompt, return_tensors="pt")  # in the form shown below',
    "call": "prompt, max_new_tokens=100, apply_chat_template=False",
    "route": "completions",
    "body": '"prompt": "in the form shown below"',
}


def usage(artifact: Artifact, repo: str, files: set[str], adapters: list[dict[str, Any]]) -> str:
    """The section for an artifact of this kind, from `repo` with these `files`; `adapters` as in
    export.json.
    """
    trained = artifact.template or "auto"
    chats = trained == "tokenizer" or (trained == "auto" and "chat_template.jinja" in files)
    parts = {
        "adapter": [_ADAPTER, _INTEL_FT],
        "merged": [_MERGED, _INTEL_FT],
        "openvino": [_OPTIMUM, _GENAI, *([_OVMS] if "graph.pbtxt" in files else []), _INTEL_FT],
    }[artifact.kind]
    values: dict[str, Any] = {"repo": repo, "name": name_of(repo), **(_CHAT if chats else _PROMPT)}
    if adapters:  # other runtimes would answer with the base alone
        parts = [_GENAI_ADAPTERS]
        values |= {"file": adapters[0]["file"], "alpha": adapters[0]["alpha"]}
    return "## How to run it\n\n" + "\n\n".join(part.format(**values) for part in parts)
