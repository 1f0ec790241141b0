"""Tries every verb on a tiny random model of each family and writes docs/architectures.md's table.

    python tools/architectures.py RESULTS             # families that RESULTS has no file for
    python tools/architectures.py RESULTS --family gemma3_text --again
    python tools/architectures.py RESULTS --table     # prints the table of what is there
    python tools/architectures.py --limits            # writes assets/optimum_exports.json

RESULTS is a folder that gets one JSON file per family, so an interrupted run resumes where it
ended. A model has a few layers, random weights and the shipped tokenizer; it is trained for three
steps with LoRA, merged and exported in fp16, by the same commands that a user starts.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft import assets
from intel_ft.files import write_text
from intel_ft.models.exportable import TABLE
from intel_ft.versions import installed

VOCABULARY = 4096
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
NO_HEADS = {name: value for name, value in SHAPE.items() if name != "num_attention_heads"}
GROUPED = SHAPE | {"num_key_value_heads": 2}
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 1024,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
STATE = {"mamba_d_state": 16, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = {"sliding_window": 16}  # shorter than the probes, so that a wrong mask shows

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2, 3": ("llama", GROUPED),
    "Llama 4": (
        "llama4_text",
        GROUPED
        | LOCAL_EXPERTS
        | {
            "head_dim": 16,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 1,
            "attention_chunk_size": 16,
        },
    ),
    "Mistral": ("mistral", GROUPED | WINDOW),
    "Ministral": ("ministral", GROUPED | {"head_dim": 16, "layer_types": [FULL, SLIDING]} | WINDOW),
    "Ministral 3": ("ministral3", GROUPED | {"head_dim": 16}),
    "Mixtral": ("mixtral", GROUPED | LOCAL_EXPERTS),
    "Qwen 2, 2.5": ("qwen2", GROUPED),
    "Qwen 2 MoE": (
        "qwen2_moe",
        GROUPED | EXPERTS | {"shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
    ),
    "Qwen 3": ("qwen3", GROUPED | {"head_dim": 16}),
    "Qwen 3 MoE": ("qwen3_moe", GROUPED | EXPERTS | {"head_dim": 16}),
    "Qwen 3 Next": (
        "qwen3_next",
        GROUPED
        | EXPERTS
        | LINEAR
        | {
            "head_dim": 16,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", FULL],
        },
    ),
    "Qwen 3.5": (
        "qwen3_5_text",
        GROUPED | LINEAR | {"head_dim": 16, "layer_types": ["linear_attention", FULL]},
    ),
    "Gemma": ("gemma", GROUPED | {"head_dim": 16}),
    "Gemma 2": ("gemma2", GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16} | WINDOW),
    "Gemma 3, text": (
        "gemma3_text",
        GROUPED | {"head_dim": 16, "layer_types": [SLIDING, FULL]} | WINDOW,
    ),
    "Gemma 3, with images": (
        "gemma3",
        {
            "text_config": GROUPED | {"head_dim": 16, "layer_types": [SLIDING, FULL]},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 5,
            "boi_token_index": 6,
            "eoi_token_index": 7,
        },
    ),
    "Gemma 4, text": (
        "gemma4_text",
        GROUPED
        | {
            "head_dim": 16,
            "global_head_dim": 16,
            "layer_types": [SLIDING, FULL],
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 0,
        },
    ),
    "Phi 1, 2": ("phi", SHAPE),
    "Phi 3, 4": ("phi3", GROUPED),
    "Phi 3.5 MoE": ("phimoe", GROUPED | LOCAL_EXPERTS),
    "GPT-2": ("gpt2", GPT),
    "GPT-Neo": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "GPT-NeoX, Pythia": ("gpt_neox", SHAPE),
    "GPT-J": ("gptj", GPT | {"rotary_dim": 8}),
    "GPT-BigCode, StarCoder": ("gpt_bigcode", GPT),
    "gpt-oss": (
        "gpt_oss",
        GROUPED | LOCAL_EXPERTS | {"head_dim": 16, "layer_types": [SLIDING, FULL]} | WINDOW,
    ),
    "Bloom": (
        "bloom",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "Falcon": ("falcon", SHAPE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon H1": (
        "falcon_h1",
        GROUPED | STATE | {"mamba_d_ssm": 128, "mamba_chunk_size": 32, "head_dim": 16},
    ),
    "Mamba": ("mamba", NO_HEADS | {"state_size": 8, "time_step_rank": 8}),
    "Mamba 2": (
        "mamba2",
        NO_HEADS
        | {"state_size": 16, "num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 32},
    ),
    "Falcon Mamba": ("falcon_mamba", NO_HEADS | {"state_size": 8, "time_step_rank": 8}),
    "Nemotron": ("nemotron", GROUPED | {"head_dim": 16}),
    "Nemotron H": (
        "nemotron_h",
        GROUPED
        | {
            "head_dim": 16,
            "layers_block_type": ["mamba", "attention", "moe"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 32,
        },
    ),
    "OLMo": ("olmo", GROUPED),
    "OLMo 2": ("olmo2", GROUPED),
    "OLMo 3": ("olmo3", GROUPED | {"layer_types": [SLIDING, FULL]} | WINDOW),
    "OLMoE": ("olmoe", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "StableLM": ("stablelm", GROUPED),
    "StarCoder 2": ("starcoder2", GROUPED),
    "SmolLM 3": ("smollm3", GROUPED),
    "Granite 3": ("granite", GROUPED),
    "Granite 3 MoE": ("granitemoe", GROUPED | LOCAL_EXPERTS),
    "Granite 4, hybrid": (
        "granitemoehybrid",
        GROUPED
        | LOCAL_EXPERTS
        | STATE
        | {
            "mamba_chunk_size": 32,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "attention"],
        },
    ),
    "Granite 4, attention only": (
        "granitemoehybrid",
        GROUPED
        | {
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["attention", "attention"],
            "position_embedding_type": "rope",
        },
    ),
    "Cohere": ("cohere", GROUPED),
    "Cohere 2": ("cohere2", GROUPED | {"layer_types": [SLIDING, FULL]} | WINDOW),
    "DeepSeek V2": ("deepseek_v2", SHAPE | LATENT | ROUTED),
    "DeepSeek V3": ("deepseek_v3", SHAPE | LATENT | ROUTED),
    "GLM 4": ("glm", GROUPED | {"head_dim": 16}),
    "GLM 4 0414": ("glm4", GROUPED | {"head_dim": 16}),
    "GLM 4 MoE": ("glm4_moe", GROUPED | ROUTED | {"head_dim": 16}),
    "EXAONE 4": ("exaone4", GROUPED | {"head_dim": 16, "layer_types": [SLIDING, FULL]} | WINDOW),
    "LFM 2": ("lfm2", GROUPED | {"layer_types": ["conv", FULL]}),
    "LFM 2 MoE": (
        "lfm2_moe",
        GROUPED | EXPERTS | {"layer_types": ["conv", FULL], "num_dense_layers": 1},
    ),
    "Jamba": (
        "jamba",
        GROUPED
        | {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    "OPT": (
        "opt",
        SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    ),
    "MPT": (
        "mpt",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 1024,
        },
    ),
    "ERNIE 4.5": ("ernie4_5", GROUPED | {"head_dim": 16}),
    "Hunyuan": ("hunyuan_v1_dense", GROUPED | {"head_dim": 16}),
    "Seed-OSS": ("seed_oss", GROUPED | {"head_dim": 16}),
    "Apertus": ("apertus", GROUPED),
}
"""By name: model_type and the config's values that differ from the family's defaults."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and the last line of stderr."""

    code: int
    message: str


def main() -> None:
    """Try the families that have no result yet, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--limits", action="store_true", help="write Optimum-Intel's limits")
    parser.add_argument("--family", action="append", metavar="NAME", help="only this family")
    parser.add_argument("--again", action="store_true", help="replace results that are there")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if options.limits:
        write_text(TABLE, json.dumps(optimum_limits(), indent=1) + "\n")
        return
    if options.results is None:
        parser.error("RESULTS is missing")
    options.results.mkdir(parents=True, exist_ok=True)
    if not options.table:
        _preload()
    for name in () if options.table else options.family or FAMILIES:
        path = options.results / f"{_slug(name)}.json"
        if options.again or not path.is_file():
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                found = try_family(name, Path(folder))
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    print(table(options.results))


def optimum_limits() -> dict[str, Any]:
    """What the installed Optimum-Intel states about the export of text models with a cache."""
    import optimum.exporters.openvino.model_configs  # noqa: F401
    from optimum.exporters.tasks import TasksManager

    registered = TasksManager._LIBRARY_TO_SUPPORTED_MODEL_TYPES["transformers"]
    found = {}
    for model_type, exporters in sorted(registered.items()):
        if export := exporters.get("openvino", {}).get("text-generation-with-past"):
            low, high = (
                getattr(export.func, f"{end}_TRANSFORMERS_VERSION", None) for end in ("MIN", "MAX")
            )
            found[model_type] = [low and str(low), high and str(high)]
    classifiers = [name for name in found if "text-classification" in registered[name]["openvino"]]
    return {
        "optimum-intel": installed("optimum-intel"),
        "transformers": found,
        "text-classification": classifiers,
    }


def try_family(name: str, folder: Path) -> dict[str, Any]:
    """Write the family's model to `folder` and run every verb on it."""
    model_type, values = FAMILIES[name]
    built = _in_child(lambda: write_model(model_type, values, folder / "base"), folder)
    found: dict[str, Any] = {"family": name, "model_type": model_type, "built": vars(built)}
    config = {
        "model": {"name_or_path": str(folder / "base")},
        "data": {"train": assets.resolve("docstring-to-python/train.jsonl"), "split": "train[:64]"},
        "method": {"r": 4, "alpha": 16},
        "train": {
            "max_steps": 3,
            "global_batch_size": 8,
            "learning_rate": 0.01,
            "report_to": [],
        },
        "backend": {"threads": 1},
        "output": {"directory": str(folder / "run")},
    }
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    commands = {
        "train": ["train", "config.yaml"],
        "merge": ["merge", "run", "-o", "merged"],
        "export": ["export", "merged", "-o", "ir", "--format", "fp16", "--no-measure"],
    }
    for verb, arguments in commands.items():
        ended = _in_child(lambda: _intel_ft(arguments), folder)  # noqa: B023
        found[verb] = vars(ended)
        if ended.code:
            break
    if (folder / "ir").is_dir():
        _in_child(lambda: print(ir_error(folder / "merged", folder / "ir")), folder)
        found["ir_error"] = float((folder / "stderr").read_text(encoding="utf-8").split()[-1])
    record = folder / "run" / "environment.json"
    found["decisions"] = (
        json.loads(record.read_text(encoding="utf-8"))["decisions"] if record.is_file() else []
    )
    return found


def write_model(model_type: str, values: dict[str, Any], folder: Path, seed: int = 0) -> None:
    """Write a model with random weights in bf16 and the shipped tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    model.to(torch.bfloat16).save_pretrained(folder)
    source = Path(assets.resolve("tiny-python-llama"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)


def ir_error(folder: Path, ir: Path) -> float:
    """The largest relative error of the IR's logits at one of 100 positions, against torch.

    Half of the tokens are read at once and the others one by one, as in generation.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from intel_ft.runtimes.ir_logits import IRLogits

    tokens = np.random.default_rng(0).integers(3, VOCABULARY, 100)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        reference = model(torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()
    compiled = IRLogits(ir, {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled.at(tokens, np.arange(100))
    request, parts = compiled.compiled.create_infer_request(), []
    for start, end in [(0, 50), *((position, position + 1) for position in range(50, 100))]:
        feed = {
            "input_ids": tokens[None, start:end],
            "attention_mask": np.ones((1, end), dtype=np.int64),
            "position_ids": np.arange(start, end)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        taken = {name for port in compiled.compiled.inputs for name in port.get_names()}
        result = request.infer({name: feed[name] for name in feed if name in taken})
        parts.append(result["logits"][0].copy())
    cached = np.concatenate(parts)
    errors = [np.square(each - reference).mean(axis=1) for each in (found, cached)]
    return float(np.sqrt(np.max(errors / np.square(reference).mean(axis=1))))


def _preload() -> None:
    """Import once what each command would import; the commands are forks of this process."""
    from intel_ft.cli import main  # noqa: F401
    from intel_ft.export.export import require_packages
    from intel_ft.optional_packages import hide_broken_torchvision, import_peft

    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    hide_broken_torchvision()
    import_peft()
    require_packages()
    import optimum.exporters.openvino  # noqa: F401

    import intel_ft.training.run  # noqa: F401


def _intel_ft(arguments: list[str]) -> None:
    from intel_ft.cli.main import main as command_line

    sys.argv = ["intel-ft", *arguments]
    command_line()


def _in_child(work: Callable[[], None], folder: Path) -> Ended:
    """Run `work` in a fork of this process, in `folder`."""
    errors = folder / "stderr"
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        stream = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = 1
        try:
            work()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, lines[-1] if code and lines else "")


def _slug(name: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in name.lower())


def table(results: Path) -> str:
    """The results in Markdown, in the order of FAMILIES."""
    titles = ("family", "model_type", "trains", "layers", "packed", "adapted", "left frozen")
    lines = [f"| {' | '.join((*titles, 'merges', 'exports'))} |", "|" + " --- |" * 9]
    for name in FAMILIES:
        path = results / f"{_slug(name)}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            lines.append(f"| {' | '.join(_cells(found))} |")
    return "\n".join(lines)


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    decisions: dict[str, list[dict[str, str]]] = {}
    for decision in found["decisions"]:
        decisions.setdefault(decision["name"], []).append(decision)

    def value(name: str) -> str:
        return "; ".join(decision["value"] for decision in decisions.get(name, ()))

    fused = "fused" if value("decoder layers") == "fused" else "own"
    frozen = value("modules left frozen")
    export = found.get("export", {"code": 1, "message": "not merged"})
    stated = decisions.get("export to OpenVINO", [{"value": "", "reason": ""}])[0]
    if export["code"] == 0:
        older = re.search(r"/transformers-([\d.]+)", stated["reason"])
        by = f", by Transformers {older[1].rstrip('.')}" if older else ""
        exports = f"yes, {found['ir_error']:.0e}{by}"
    elif stated["value"] == "no":
        _, limited, limit = stated["reason"].partition(";")[0].partition(" with Transformers ")
        exports = f"no, {limit.partition(',')[0]}" if limited else "no"
    else:
        exports = f"no: {export['message']}"
    adapted = value("adapted modules").rpartition(" (")[0]
    if frozen.startswith("embeddings"):
        frozen, experts = "", " and experts" if ".experts." in adapted else ""
        adapted = f"every linear layer{experts}"
    return (
        found["family"],
        f"`{found['model_type']}`",
        _ended(found["train"]),
        fused,
        "yes" if value("packing") == "on" else "no",
        _by_owner(adapted),
        _by_owner(frozen.replace("; ", ", ")),
        _ended(found.get("merge", {"code": 1, "message": "not trained"})),
        exports,
    )


def _by_owner(kinds: str) -> str:
    """`mlp.up_proj, mlp.down_proj` as `mlp: up_proj down_proj`."""
    owners: dict[str, list[str]] = {}
    for kind in kinds.split(", "):
        owner, _, name = kind.rpartition(".")
        owners.setdefault(owner, []).append(name)
    return "; ".join(
        f"{owner}: {' '.join(names)}" if owner else " ".join(names)
        for owner, names in owners.items()
    )


def _ended(result: dict[str, Any]) -> str:
    return "yes" if result["code"] == 0 else f"no: {result['message']}"


if __name__ == "__main__":
    main()
