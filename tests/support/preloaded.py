"""Everything a run imports, loaded once by the fork server of support.harness."""

import gc
from importlib import import_module

for name in (
    "intel_ft.cli.main",
    "intel_ft.training.run",
    "datasets.packaged_modules.json.json",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora",
):
    import_module(name)

# A collection in a forked process would visit, and so copy, everything that it shares.
gc.collect()
gc.freeze()
