"""The model card states what is on record, no more; only what belongs there is published."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from support.hub_fixtures import HOST, make_run, write_adapter

from intel_ft.artifacts.ir import read_weights
from intel_ft.artifacts.provenance import Provenance
from intel_ft.errors import UserError
from intel_ft.hub.contents import BELONGS, File, collect
from intel_ft.hub.metadata import CardOptions
from intel_ft.hub.push import PushReport, push
from intel_ft.hub.secrets import refuse_secrets

ROWS = [
    {"name": "int4", "format": "int4", "megabytes": 4.137, "perplexity": 3.9137,
     "ppl_increase": 0.05931, "kl": 0.02917, "agreement": 0.9371, "exact_match": 0.1731,
     "first_token_ms": 12.37, "tokens_per_s": 411.3, "passed": False},
    {"name": "int8", "format": "int8", "megabytes": 7.919, "perplexity": 3.6971,
     "ppl_increase": 0.00077, "kl": 0.00061, "agreement": 0.9953, "exact_match": 0.1937,
     "first_token_ms": 13.91, "tokens_per_s": 377.9, "passed": True},
]  # fmt: skip


def dry(folder: Path, repo: str = "someone/tiny-tuned", **options) -> PushReport:
    card_options = options.pop("card_options", CardOptions())
    return push(str(folder), repo, card_options=card_options, dry_run=True, **options)


def table(card: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading: first cell, the others."""
    section = card.split(f"## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {cells[0]: cells[1:] for cells in rows}


def numbers_in(value) -> set[float]:
    """Every number in a record, in its strings too, and as a percentage."""
    if isinstance(value, dict):
        return set().union(*map(numbers_in, [*value.keys(), *value.values()]))
    if isinstance(value, list | tuple):
        return set().union(*map(numbers_in, value))
    if isinstance(value, str):
        return {float(found) for found in re.findall(r"\d+(?:\.\d+)?", value)}
    return set() if value is None else {float(value), 100 * float(value)}


def prose_of(card: str) -> str:
    """The card without code, links and its front matter."""
    text = card.split("---\n", 2)[2]
    return re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL)


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def ir(tmp_path) -> Path:
    """A real IR with u8 weights and NNCF's record, as an export of a fine-tune leaves it."""
    import openvino
    from openvino import opset13 as ops

    folder = tmp_path / "ir"
    folder.mkdir()
    weights = ops.constant(np.zeros((37, 64), dtype=np.uint8))
    scales = ops.constant(np.ones((37, 1), dtype=np.float16))
    product = ops.multiply(ops.convert(weights, "f16"), scales)
    tokens = ops.parameter([-1, 64], np.float16)
    model = openvino.Model([ops.matmul(tokens, product, False, True)], [tokens])
    model.set_rt_info("int8_asym", ["nncf", "weight_compression", "mode"])
    model.set_rt_info("-1", ["nncf", "weight_compression", "group_size"])
    openvino.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    (folder / "config.json").write_text('{"_name_or_path": "tiny-python-llama"}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "export.svg").write_text("<svg/>")
    (folder / "graph.pbtxt").write_text("node {}")
    base = "tiny-python-llama"
    Provenance("openvino", base, None, "tokenizer", None, "0.1.0").save(folder)
    weights_record = read_weights(folder)
    export = {
        "name": "int8",
        "kind": "merged",
        "training": None,
        "calibration": {"source": "the run's training examples", "samples": 127, "tokens": 30_011},
        "quantization": {"elements": weights_record.elements},
        "packages": {"openvino": "2026.4.1", "nncf": "3.4.0"},
        "gate": {
            "limits": {"max_ppl_increase": 0.013, "min_agreement": 0.97},
            "data": {"source": "heldout.jsonl", "examples": 283, "positions": 31_234},
            "reference": {"dtype": "bfloat16", "megabytes": 15.07, "perplexity": 3.6943},
            "table": ROWS,
            "plot": "export.svg",
        },
    }
    (folder / "export.json").write_text(json.dumps(export))
    return folder


def test_the_front_matter_is_what_the_hub_reads(run) -> None:
    data = ModelCard(dry(run).card).data
    assert data.license == "other"  # the base's own, with its name and link
    assert (data.license_name, data.license_link[:8]) == ("psf-2.0", "https://")
    assert (data.base_model, data.base_model_relation) == ("tiny-python-llama", "adapter")
    assert data.datasets == ["someone/python-questions"]
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-generation")
    assert data.language == ["code"]
    assert data.metrics == ["loss"]
    result = data.eval_results[0]
    assert (result.metric_type, result.metric_value) == ("loss", 0.71234)
    assert result.dataset_name == "heldout.jsonl"  # without its folder


def test_every_number_of_an_adapters_card_is_on_record(run) -> None:
    card = dry(run).card
    config = yaml.safe_load((run / "config.yaml").read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in metrics if "loss" in line]
    training = table(card, "Training")
    expected = {
        "LoRA rank r": config["method"]["r"],
        "LoRA alpha": config["method"]["alpha"],
        "LoRA dropout": config["method"]["dropout"],
        "learning rate": config["train"]["learning_rate"],
        "examples per step": config["train"]["global_batch_size"],
        "weight decay": config["train"]["weight_decay"],
        "maximum tokens per example": config["data"]["max_length"],
        "steps taken": steps[-1]["step"],
        "tokens trained on": sum(line["tokens"] for line in steps),
        "supervised tokens": sum(line["supervised_tokens"] for line in steps),
        "last training loss, nats per token": steps[-1]["loss"],
        "best validation loss, nats per token": min(line.get("eval_loss", 9) for line in metrics),
        "ranks": 3,
    }
    for label, value in expected.items():
        shown = float(training[label][0].replace(",", ""))
        assert math.isclose(shown, value, rel_tol=5e-4), label
    assert training["training data"] == ["someone/python-questions"]
    environment = json.loads((run / "environment.json").read_text())
    totals = [sum(line[name] for line in steps) for name in ("tokens", "supervised_tokens")]
    assert_all_on_record(card, [config, metrics, environment, totals])


def test_every_number_of_an_irs_card_is_on_record(run, ir) -> None:
    card = dry(ir, run=run).card
    weights = read_weights(ir)
    quantization = table(card, "Quantization")
    assert quantization["mode"] == ["int8_asym"]
    assert quantization["group size"] == ["one scale per channel"]
    assert quantization["values stored as u8"] == [f"{37 * 64:,} (98.5 %)"]
    assert weights.elements["u8"] == 37 * 64
    gate = table(card, "Quality")
    for row in ROWS:
        cells = gate[row["name"]]
        shown = [float(cell.rstrip(" %")) for cell in cells]
        percentages = {"ppl_increase", "agreement", "exact_match"}
        recorded = [
            value * (100 if name in percentages else 1)
            for name, value in row.items()
            if name not in ("name", "format", "passed")
        ]
        assert np.allclose(shown, recorded, rtol=5e-3)
    assert "`int8`" in card and "![size against quality](export.svg)" in card
    data = ModelCard(card).data
    assert data.metrics == ["exact_match", "perplexity"]
    assert {r.metric_type: r.metric_value for r in data.eval_results}["perplexity"] == 3.6971
    records = [yaml.safe_load((run / "config.yaml").read_text())]
    for path in (run / "environment.json", ir / "export.json"):
        records.append(json.loads(path.read_text()))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in metrics if "loss" in line]
    totals = [sum(line[name] for line in steps) for name in ("tokens", "supervised_tokens")]
    shares = [weights.share(kind) for kind in weights.elements]
    assert_all_on_record(card, [*records, metrics, totals, weights.elements, shares, 8])


def assert_all_on_record(card: str, records: list) -> None:
    known = numbers_in(records) | numbers_in(Provenance.__module__)
    for found in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", prose_of(card)):
        value = float(found.replace(",", ""))
        near = any(math.isclose(value, one, rel_tol=5e-3) for one in known)
        assert near, f"{found} is on no record"


def test_the_card_of_a_mixture_names_experts_routers_and_active_parameters(run) -> None:
    names = {
        "adapted modules": "self_attn.q_proj, mlp.experts.down_proj (3 modules, 96 parameters)",
        "modules left frozen": "mlp.gate",
        "parameters per token": "574,336 of the base's 598,912",
    }
    path = run / "environment.json"
    decided = [{"name": name, "value": value, "reason": "x"} for name, value in names.items()]
    decided.append({"name": "model.adapter", "value": "/home/someone/other", "reason": "x"})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decisions": decided}))
    card = dry(run).card
    shown = table(card, "Training")
    assert {name: shown[name] for name in names} == {k: [v] for k, v in names.items()}
    assert "/home/someone" not in card


def test_nothing_of_this_machine_is_in_what_goes_up(run) -> None:
    report = dry(run)
    assert HOST not in report.card
    assert str(run) not in report.card and "/home/someone" not in report.card
    assert report.left_out == ["trainer_state.json"]
    assert not {"config.yaml", "train.log", "environment.json"} & set(report.files)


@pytest.mark.parametrize("kind", BELONGS)
def test_only_what_belongs_is_collected(tmp_path, kind) -> None:
    strangers = ("optimizer.pt", "scheduler.pt", "train.log", ".env", "events.out.tfevents.1.host",
                 "metrics.jsonl", "environment.json", "sub/config.json", "id_rsa")  # fmt: skip
    for name in (*strangers, "tokenizer.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        collect(tmp_path, kind, "base", "org/base")
    weights = {"adapter": "adapter_model.safetensors", "openvino": "openvino_model.bin"}
    name = weights.get(kind, "model-00001-of-00001.safetensors")
    (tmp_path / name).write_bytes(b"weights")
    files, left = collect(tmp_path, kind, "base", "org/base")
    assert [file.path for file in files] == [name, "tokenizer.json"]
    assert left == sorted(strangers)


def test_a_local_base_is_named_as_the_hub_knows_it(tmp_path) -> None:
    base = tmp_path / "models" / "llama"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n")
    run = make_run(tmp_path / "run", base=str(base))
    with pytest.raises(UserError, match="--base-model"):
        dry(run)
    report = dry(run, card_options=CardOptions(base_model="org/llama"))
    data = ModelCard(report.card).data
    assert (data.base_model, data.license, data.language) == ("org/llama", "apache-2.0", "en")
    files, _ = collect(run / "adapter", "adapter", str(base), "org/llama")
    texts = {file.path: file.text() for file in files if file.path.endswith(".json")}
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == "org/llama"
    assert json.loads(texts["intel_ft.json"])["base_model"] == "org/llama"
    assert str(tmp_path) not in "".join(texts.values())


def test_a_path_that_cannot_be_named_is_refused(run, ir) -> None:
    config = run / "adapter" / "tokenizer_config.json"
    config.write_text('{"eos_token": "</s>", "name_or_path": "/home/ann/models/base"}')
    with pytest.raises(UserError, match=r"tokenizer_config.json: name_or_path is .*/home/ann/mod"):
        dry(run)
    model = ir / "openvino_model.xml"
    text = model.read_text()
    model.write_text(text.replace("</rt_info>\n</net>", '<x value="/home/ann/m"/></rt_info></net>'))
    assert model.read_text() != text
    with pytest.raises(UserError, match=r"openvino_model.xml: .*local path .*/home/ann/m"):
        collect(ir, "openvino", "base", "org/base")


SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "an AWS access key": "AKIA" + "QWERTY0123456789",
    "an AWS secret key": "aws_secret_access_key = " + "aB3/" * 10,
    "a GitHub token": "ghp_" + "aB3d" * 9,
    "an OpenAI key": "sk-proj-" + "aB3d" * 12,
    "an Anthropic key": "sk-ant-api03-" + "aB3d" * 12,
    "a Google API key": "AIza" + "aB3d_" * 7,
    "a Slack token": "xoxb-" + "123456789012-abcdefghijkl",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a password in a URL": "https://ann:secret@proxy.example/x",
    "your own token": "oauth-of-no-known-form",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_named_and_not_shown(kind) -> None:
    secret = SECRETS[kind]
    file = File("chat_template.jinja", f"first line\n{{# {secret} #}}\n".encode())
    with pytest.raises(UserError) as refused:
        refuse_secrets([file], SECRETS["your own token"])
    assert f"{kind} in chat_template.jinja line 2" in str(refused.value)
    assert secret not in str(refused.value)


def test_a_vocabulary_holds_no_secret() -> None:
    from intel_ft import assets

    vocabulary = Path(assets.resolve("tiny-python-llama")) / "tokenizer.json"
    refuse_secrets([File("tokenizer.json", vocabulary)], None)


def test_records_that_contradict_the_folder_are_refused(run, ir, tmp_path) -> None:
    other = make_run(tmp_path / "other", base="org/other")
    with pytest.raises(UserError, match="another base model"):
        dry(ir, run=other)
    with pytest.raises(UserError, match="not a run's folder"):
        dry(ir, run=tmp_path)
    record = json.loads((ir / "export.json").read_text())
    record["quantization"]["elements"]["u8"] += 1
    (ir / "export.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"export.json: does not match the IR"):
        dry(ir)


def test_adapters_beside_a_base_are_shown_as_measured(ir) -> None:
    place = ir / "adapters" / "python"
    place.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt"):
        (place / name).write_text("{}")
    one = {"name": "python", "file": "adapters/python/adapter_model.safetensors", "r": 12,
           "lora_alpha": 24.0, "alpha": 1.0, "top1": 0.9583, "top1_without": 0.1667}  # fmt: skip
    record = json.loads((ir / "export.json").read_text())
    record |= {"kind": "base+adapters", "adapters": [one], "gate": None}
    (ir / "export.json").write_text(json.dumps(record))
    report = dry(ir)
    assert report.left_out == ["adapters/python/optimizer.pt"]
    assert table(report.card, "Adapters")["python"] == [
        one["file"], "12", "24", "1", "95.8 %", "16.7 %"
    ]  # fmt: skip
    assert f'Adapter(f"{{folder}}/{one["file"]}"), 1.0)' in report.card
    assert "OVModelForCausalLM" not in report.card  # it would answer with the base alone
    assert ModelCard(report.card).data.base_model_relation == "finetune"


def test_a_damaged_ir_is_refused(ir) -> None:
    model = ir / "openvino_model.xml"
    model.write_text(model.read_text()[:500])
    with pytest.raises(UserError, match="OpenVINO cannot read this IR"):
        dry(ir)


def test_an_untrained_ir_is_a_quantization(ir) -> None:
    record = json.loads((ir / "export.json").read_text()) | {"kind": "model"}
    (ir / "export.json").write_text(json.dumps(record))
    card = dry(ir).card
    assert ModelCard(card).data.base_model_relation == "quantized"
    assert "How it was trained is not on record" in card


def test_the_prompt_is_shown_as_trained(tmp_path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter, "tiny-python-llama", "llama2")
    shown = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{question} [/INST] "
    assert f"```text\n{shown}\n```" in dry(adapter).card


HOSTILE = "x` | <img src=http://evil/a.png>\n# Trap\n```\n[click](http://evil)"


def test_text_from_records_cannot_leave_its_place_in_the_card(ir) -> None:
    record = json.loads((ir / "export.json").read_text())
    record["calibration"]["source"] = record["gate"]["data"]["source"] = HOSTILE
    record["cpu"] = record["packages"][HOSTILE] = HOSTILE
    record["recipe"] = {"used": True, "id": HOSTILE}
    (ir / "export.json").write_text(json.dumps(record))
    Provenance("openvino", "tiny-python-llama", None, "tokenizer", HOSTILE, "0.1.0").save(ir)
    card = dry(ir).card
    fence = "`" * 4
    block = f"{fence}text\n{HOSTILE}\n{fence}"
    assert block in card
    text = card.replace(block, "").split("---\n", 2)[2]
    assert not re.search(r"^# Trap", text, re.MULTILINE)
    code = f"{fence} {' '.join(HOSTILE.splitlines())} {fence}"
    assert code in text
    text = text.replace(code, "")
    assert not re.search(r"(?<!\\)<img|(?<!\\)\[click|\S(?<!\\)\|", text)


def test_a_card_of_ones_own(run, tmp_path) -> None:
    card = tmp_path / "mine.md"
    card.write_text("---\nlicense: mit\npipeline_tag: text-generation\n---\n# Mine\n")
    assert dry(run, card=card).card == card.read_text()
    for text, words in {
        "# no front matter": "no license",
        "---\nlicense: [\n---\n": "not valid",
        "---\nlicense: My Own\npipeline_tag: text-generation\n---\n": "its id on the Hub",
    }.items():
        card.write_text(text)
        with pytest.raises(UserError, match=words):
            dry(run, card=card)


@pytest.mark.parametrize("repo", ["alone", "a/b/c", "../x", "org/na me", "org/.."])
def test_names_that_are_none(run, repo) -> None:
    with pytest.raises(UserError, match=re.escape(repo)):
        dry(run, repo)


def test_a_base_model_is_not_published() -> None:
    from intel_ft import assets

    with pytest.raises(UserError, match="a base model"):
        dry(Path(assets.resolve("tiny-python-llama")))
