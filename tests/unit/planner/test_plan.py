"""What `plan` counts and predicts, against the models, optimizers and choices of a real run."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from support.model_fixtures import SHAPE

from intel_ft.config import Config, build
from intel_ft.errors import UserError
from intel_ft.host import topology
from intel_ft.host.topology import Core, Topology
from intel_ft.models import gemm_rate
from intel_ft.models.flops import expert_weights, step_cost
from intel_ft.planner.hardware import CPUS, Machine, measured, named_cpus, named_gpus, this_machine
from intel_ft.planner.inputs import Cluster, PlanInputs, inputs_of
from intel_ft.planner.lengths import AssumedData, example_lengths
from intel_ft.planner.plan import plan
from intel_ft.planner.roofline import exchange_seconds, rank_seconds
from intel_ft.planner.sweep import plotted, swept, values_of
from intel_ft.planner.text import lines, sweep_table
from intel_ft.planner.workload import PlannedRow
from intel_ft.training.memory import MemorySetting, estimate_memory
from intel_ft.training.model_sizes import CountedModel, count_model, model_sizes

SHAPES = Path(__file__).parents[3] / "docs" / "shapes"
GIB = 2**30
MACHINE = Machine("a test's", 4, torch.bfloat16, 4e11, 8e11, 4e10, "made up")
EQUAL = MemorySetting("as loaded", 2048, 1024, uneven=False, checkpointing=False)


def config(name: object = "tiny-python-llama", **sections: dict[str, object]) -> Config:
    values: dict[str, dict[str, object]] = {
        "model": {"name_or_path": str(name)},
        "data": {"train": "docstring-to-python/train.jsonl"},
        "output": {"directory": "out"},
    }
    for section, options in sections.items():
        values[section] = values.get(section, {}) | options
    return build(values, "test")


@pytest.fixture(scope="module")
def seven() -> CountedModel:
    return count_model(config(SHAPES / "llama-2-7b"))


def inputs(
    settings: Config, model: CountedModel, tokens: int = 512, **cluster: object
) -> PlanInputs:
    options = {"memory": 256 * GIB} | cluster
    examples = example_lengths(settings, AssumedData(1024, tokens))
    return PlanInputs(settings, Cluster(**options), model, MACHINE, examples)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the models' own safetensors index files sum up
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
    ],
)
def test_published_models_have_their_published_number_of_parameters(name, parameters) -> None:
    sizes = count_model(config(SHAPES / name)).sizes
    assert sizes.parameters == parameters
    assert sizes.why_not_fused is None
    assert sizes.packs


def test_a_preference_run_reads_its_answers_once_more(seven) -> None:
    def planned(**method: object) -> dict[str, float]:
        settings = config(SHAPES / "llama-2-7b", method={"name": "preference"} | method)
        return plan(inputs(settings, seven))

    dpo, orpo, kto = (planned(loss=loss) for loss in ("dpo", "orpo", "kto"))
    step, steps = dpo["step"]["seconds"], dpo["run"]["steps"]
    assert dpo["run"]["reference_seconds"] == pytest.approx(steps * step / 2, rel=0.05)
    assert orpo["run"]["reference_seconds"] == 0
    assert kto["run"]["reference_seconds"] == pytest.approx(1.5 * steps * step, rel=0.1)
    assert any("the reference model" in line for line in lines(dpo))
    assert not any("the reference model" in line for line in lines(orpo))


def test_lora_is_counted_as_peft_makes_it(seven) -> None:
    # r (in + out) of q, k, v, o, gate, up, down in 32 layers
    assert seven.sizes.trained == 16 * 32 * (4 * 8192 + 3 * (4096 + 11008))
    some = count_model(config(SHAPES / "llama-2-7b", method={"target_modules": ["q_proj"], "r": 8}))
    assert some.sizes.trained == 8 * 32 * 8192
    with pytest.raises(UserError, match="target_modules"):
        count_model(config(method={"target_modules": ["query"]}))


def test_a_config_that_cannot_be_used_is_named(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(UserError, match=r"config\.json cannot be used"):
        count_model(config(tmp_path))
    with pytest.raises(UserError, match="no such model folder"):
        count_model(config("./not-here"))


def test_embeddings_of_weights_in_another_dtype_are_all_read() -> None:
    report = plan(inputs_of(config(train={"max_steps": 2}), Cluster(cpu="8480+", memory=GIB), None))
    as_float32 = plan(
        inputs_of(config(model={"dtype": "float32"}), Cluster(cpu="8480+", memory=GIB), None)
    )
    tied = report["memory"]["parts"]["base"]
    assert as_float32["memory"]["parts"]["base"] == pytest.approx(2 * tied)


def test_a_run_that_does_not_fit_is_told_what_makes_it_fit() -> None:
    settings = config(SHAPES / "llama-2-7b", train={"max_tokens_per_row": 16384})
    model = count_model(settings)
    settings = settings.model_copy(
        update={"train": settings.train.model_copy(update={"global_batch_size": 32})}
    )
    small = inputs(settings, model, memory=40 * GIB)
    report = plan(small)
    assert not report["memory"]["fits"]
    assert "DOES NOT FIT" in "\n".join(lines(report))
    changes = report["change"]
    assert changes[0].startswith("train.activation_checkpointing=true: ")
    assert changes[1].startswith("train.activation_checkpointing=true model.base_dtype=int8: ")
    assert changes[2].startswith("train.activation_checkpointing=true method.name=qlora: ")
    train = settings.train.model_copy(update={"activation_checkpointing": True})
    changed = replace(small, config=settings.model_copy(update={"train": train}))
    assert plan(changed)["memory"]["fits"]
    nothing = plan(replace(small, cluster=replace(small.cluster, memory=GIB)))["change"]
    assert len(nothing) == 1
    assert "more memory or a smaller model" in nothing[0]


@pytest.mark.parametrize(
    ("name", "memory", "sections"),
    [
        ("qwen3-30b-a3b", 60, {}),  # experts converted while they are loaded
        ("llama-2-7b", 12, {}),
        ("llama-2-7b", 48, {"method": {"name": "full"}}),
        ("llama-2-13b", 128, {"method": {"name": "full"}}),  # needs two changes
    ],
)
def test_a_run_fits_with_each_change_that_it_is_told(name, memory, sections) -> None:
    settings = config(SHAPES / name, **sections)
    proposed = plan(inputs(settings, count_model(settings), memory=memory * GIB))["change"]
    assert proposed
    for proposal in proposed:
        values = {section: dict(keys) for section, keys in sections.items()}
        for section, key, value in re.findall(r"(\w+)\.(\w+)=(\w+)", proposal):
            values.setdefault(section, {})[key] = yaml.safe_load(value)
        tokens = values.get("train", {}).get("max_tokens_per_row", 16384)
        values["data"] = {"max_length": min(1024, tokens)}
        followed = config(SHAPES / name, **values)
        nodes = re.search(r"--nodes (\d+)", proposal)
        cluster = {"memory": memory * GIB, "nodes": int(nodes[1]) if nodes else 1}
        found = plan(inputs(followed, count_model(followed), tokens=min(512, tokens), **cluster))
        assert found["memory"]["fits"], proposal
        if size := re.search(r": ([\d.]+) GiB", proposal):
            assert found["memory"]["needed"] == pytest.approx(float(size[1]), abs=0.06)


def test_a_step_counts_the_plans_own_rows(seven) -> None:
    report = plan(inputs(config(SHAPES / "llama-2-7b"), seven))
    step, sizes = report["step"], seven.sizes
    assert step["tokens"] == 16 * 512
    assert report["run"]["steps"] == 64
    needed = 16 * (seven.cost.linear * 512 + seven.cost.attention * 512**2)
    needed += seven.cost.logits * 16 * 256
    assert step["flops"] == pytest.approx(needed)
    assert sum(step["parts"].values()) == pytest.approx(step["seconds"])
    products = step["parts"]["linear_layers"]
    assert products == pytest.approx(4 * sizes.linear * step["tokens"] / MACHINE.gemm_rate)
    assert 0.3 < step["mfu"] < 1
    assert report["run"]["seconds"] == pytest.approx(64 * step["seconds"])


def test_int8_and_checkpointing_change_the_time_of_products(seven) -> None:
    name = SHAPES / "llama-2-7b"
    again = {"activation_checkpointing": True}
    plain, int8, checkpointed = (
        plan(inputs(settings, seven))["step"]["parts"]["linear_layers"]
        for settings in (
            config(name),
            config(name, model={"base_dtype": "int8"}),
            config(name, train=again),
        )
    )
    assert int8 == pytest.approx(plain / 2)
    assert checkpointed == pytest.approx(1.5 * plain)


def test_ranks_share_a_step_and_pay_for_the_exchange(seven) -> None:
    settings = config(SHAPES / "llama-2-7b")
    one, four = (plan(inputs(settings, seven, nodes=n, watts=500.0)) for n in (1, 4))
    assert one["step"]["communication_share"] == 0
    assert four["step"]["communication_share"] > 0
    assert one["step"]["seconds"] / 4 < four["step"]["seconds"] < one["step"]["seconds"] / 2
    assert four["cluster"]["ranks"] == 4
    assert four["run"]["kwh"] == pytest.approx(500 * 4 * four["run"]["seconds"] / 3.6e6)
    assert four["memory"]["parts"]["communication"] * GIB == 8 * seven.sizes.trained
    halves = plan(inputs(settings, seven, ranks=2))
    assert halves["cluster"]["threads"] == 2
    assert halves["memory"]["available"] == 128


def test_the_memory_of_a_nodes_ranks_is_added_up(seven) -> None:
    settings = config(SHAPES / "llama-2-7b")
    one, four = (plan(inputs(settings, seven, ranks=ranks)) for ranks in (1, 4))
    node = four["memory"]["node"]
    assert node["needed"] == pytest.approx(4 * four["memory"]["needed"])
    assert node["available"] == pytest.approx(256)
    (line,) = (line for line in lines(four) if line.startswith("  per node"))
    assert f"{node['needed']:.2f} of 256.00 GiB needed by 4 ranks" in line
    assert not any(line.startswith("  per node") for line in lines(one))
    gpus = inputs_of(config(backend={"name": "auto"}), Cluster(gpu="T4", ranks=2), AssumedData(64))
    assert plan(gpus)["memory"]["node"] is None


def test_a_model_too_large_for_any_row_says_so(seven) -> None:
    report = plan(inputs(config(SHAPES / "llama-2-7b"), seven, memory=8 * GIB))
    assert report["memory"]["largest_row"] == 0
    assert any("no row fits" in line for line in lines(report))


def test_what_shared_prefixes_save_is_printed() -> None:
    found = inputs_of(config(train={"max_steps": 2}), Cluster(cpu="8480+", memory=GIB), None)
    step = plan(found)["step"]
    assert step["computed_tokens"] < step["tokens"]
    share = 1 - step["computed_tokens"] / step["tokens"]
    assert step["shared_prefix_share"] == pytest.approx(share)
    assert any(f"({100 * share:.1f} %) are not computed again" in one for one in lines(plan(found)))
    off = config(train={"max_steps": 2, "share_prefixes": False})
    without = plan(inputs_of(off, Cluster(cpu="8480+", memory=GIB), None))
    assert without["step"]["shared_prefix_share"] == 0
    assert not any("not computed again" in line for line in lines(without))


def test_exchange_takes_what_was_measured() -> None:
    assert exchange_seconds(10**7, 1, 1, "gloo", 1e9) == 0
    assert exchange_seconds(10**7, 1, 2, "gloo", 1e9) == pytest.approx(0.0305, rel=0.1)
    assert exchange_seconds(10**7, 1, 2, "ccl", 1e9) == pytest.approx(0.0087, rel=0.1)
    # Between nodes the network is the slowest link: 2 * 3/4 of 40 MB over 0.1 GB/s.
    assert exchange_seconds(10**7, 4, 1, "ccl", 1e8) == pytest.approx(0.6, rel=0.01)


def test_time_gives_back_what_was_measured_on_the_idle_machine() -> None:
    """docs/performance.md: `small`, rows of one example, on two cores."""
    from intel_ft.bench.workloads import shape_model, workload
    from intel_ft.planner.roofline import Rates

    shapes = shape_model(workload("small"), 16)
    model = CountedModel(None, model_sizes(shapes), step_cost(shapes), [])
    rates = Rates(gemm=443e9, linear=443e9, bandwidth=38.5e9)
    for tokens, seconds in ((256, 0.463), (1024, 1.637), (2048, 3.593), (8192, 25.49)):
        rows = [PlannedRow(np.array([tokens]), tokens**2, tokens // 2, tokens)]
        predicted = rank_seconds(model, rates, rows, EQUAL).total
        assert predicted == pytest.approx(seconds, rel=0.1)


def test_named_cpus_have_the_rates_of_their_data_sheets() -> None:
    node = named_cpus("8480+", 2, None, "auto")
    assert node.cores == 112
    assert node.gemm_rate == pytest.approx(0.5 * 112 * 2.0e9 * 1024)
    assert node.int8_rate == 2 * node.gemm_rate
    assert node.bandwidth == pytest.approx(0.8 * 2 * 307.2e9)
    half = named_cpus("8480+", 1, 28, "auto")
    assert half.bandwidth == pytest.approx(node.bandwidth / 4)
    assert all("ark.intel.com" in cpu.source for cpu in CPUS.values())
    with pytest.raises(UserError, match="8480"):
        named_cpus("486", 1, None, "auto")
    single = named_cpus("8480+", 2, None, "float32")  # which AMX does not compute
    assert (single.dtype, single.gemm_rate) == (torch.float32, node.gemm_rate / 16)
    slow, fast = (named_gpus("H200", 1, dtype).gemm_rate for dtype in ("float32", "auto"))
    assert slow < fast / 10
    with pytest.raises(UserError, match="has no instructions for it"):
        named_cpus("8380", 1, None, "bfloat16")
    with pytest.raises(UserError, match="has no instructions for it"):
        named_gpus("T4", 1, "bfloat16")


def test_only_cores_that_compute_at_the_same_time_are_measured(monkeypatch) -> None:
    """Hyperthreads share a core, and a container's quota may allow less than there are."""
    before = torch.get_num_threads()
    cores = (Core(0, 0, (0, 1)), Core(0, 0, (2, 3)))
    products = [gemm_rate.Gemm(64, 64, 64)]
    monkeypatch.setattr(gemm_rate, "memory_bandwidth", lambda seconds: 1e10)
    try:
        for quota, usable in ((None, 2), (1.0, 1)):
            monkeypatch.setattr(topology, "read", lambda q=quota: Topology(cores, {0: 8}, q))
            found = measured(this_machine(torch.float32, None), products, prepacked=False)
            assert (found.cores, torch.get_num_threads()) == (usable, usable)
    finally:
        torch.set_num_threads(before)


def test_experts_are_counted_as_often_as_a_token_meets_them() -> None:
    shape = transformers.Qwen3MoeConfig(
        **SHAPE | {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
    )
    model = transformers.Qwen3MoeForCausalLM(shape)
    model.requires_grad_(False)
    an_expert = 3 * 32 * shape.hidden_size
    assert expert_weights(model) == (2 * an_expert * shape.num_hidden_layers, 0)
    assert expert_weights(model.requires_grad_(True))[0] == 0
    assert step_cost(model).linear > 6 * expert_weights(model)[1]


def test_layers_that_others_compute_are_not_taken_for_ours() -> None:
    ours = count_model(config()).sizes
    for backend in ({"name": "ipex"}, {"compile": True}):
        sizes = count_model(config(backend=backend)).sizes
        assert ours.why_not_fused is None and sizes.why_not_fused is not None
        assert (
            estimate_memory(sizes, EQUAL).activations
            > 1.5 * estimate_memory(ours, EQUAL).activations
        )


def test_a_whole_model_takes_18_bytes_a_parameter(seven) -> None:
    settings = config(SHAPES / "llama-2-7b", method={"name": "full"})
    model = count_model(settings)
    assert model.sizes.trained == model.sizes.parameters == seven.sizes.parameters
    report = plan(inputs(settings, model))
    parts = report["memory"]["parts"]
    assert (parts["trained"] + parts["optimizer"]) * GIB == 18 * seven.sizes.parameters
    assert parts["base"] == parts["linear_layers"] == 0
    assert report["memory"]["layout"] == "as loaded"
    assert report["model"]["layers"] == "all of their weights train"
    assert report["step"]["parts"]["linear_layers"] == 0
    lora = plan(inputs(config(SHAPES / "llama-2-7b"), seven))["step"]
    assert 1.2 < report["step"]["flops"] / lora["flops"] < 1.6  # 6 for 4 a weight and token
    small = plan(inputs(settings, model, memory=64 * GIB))["change"]
    shards = "train.activation_checkpointing=true backend.shard=true with --nodes 4 --ranks 1: "
    assert small[0].startswith(shards)
    nothing = plan(inputs(settings, model, memory=2 * GIB))["change"]
    assert "train an adapter" in nothing[-1]


def test_ranks_that_share_a_whole_model_take_their_part_of_it(seven) -> None:
    settings = config(SHAPES / "llama-2-7b", method={"name": "full"}, backend={"shard": True})
    report = plan(inputs(settings, count_model(settings), nodes=4, memory=128 * GIB))
    parts, weights = report["memory"]["parts"], seven.sizes.parameters
    assert (parts["trained"] + parts["optimizer"]) * GIB == 16 * weights / 4
    assert parts["gathered"] * GIB == 2 * weights  # rank 0 writes them in the end
    assert report["memory"]["fits"] and parts["communication"] == 0
    gathered = 8 * weights  # bf16 in both directions, float32 gradients
    assert report["step"]["parts"]["communication"] > 0.75 * gathered / 1.25e9  # 10 Gbit/s
    lora = config(SHAPES / "llama-2-7b", backend={"shard": True})
    memory = plan(inputs(lora, count_model(lora), nodes=4, memory=64 * GIB))["memory"]
    base = memory["parts"]["base"] + memory["parts"]["linear_layers"]
    assert base * GIB == pytest.approx(2 * weights / 4, rel=1e-6)
    assert memory["layout"] == "as loaded"


def test_a_teacher_is_loaded_and_read() -> None:
    name, teacher = SHAPES / "llama-2-7b", SHAPES / "llama-2-13b"
    own = config(name, method={"name": "distill", "teacher": "base"})
    other = config(name, method={"name": "distill", "teacher": str(teacher)})
    alone, base, larger = (
        plan(inputs(settings, count_model(settings))) for settings in (config(name), own, other)
    )
    weights = [report["memory"]["parts"]["teacher"] * GIB for report in (alone, base, larger)]
    assert weights == [0, 0, 2 * count_model(config(teacher)).sizes.parameters]
    seconds = [report["step"]["parts"]["teacher"] for report in (alone, base, larger)]
    assert seconds[0] == 0 < seconds[1] < seconds[2]
    # Forward is half of what frozen weights cost with their gradient, of twice the parameters.
    needed = [report["step"]["flops"] for report in (alone, base, larger)]
    assert needed[1] / needed[0] == pytest.approx(1.5, rel=0.02)
    assert needed[2] / needed[0] == pytest.approx(1.98, rel=0.03)


@pytest.mark.parametrize(
    ("row_tokens", "options", "tensors", "tokens_per_s"),
    [  # docs/cuda.md, an H200: GiB of tensors, token/s
        (2048, {"method": {"name": "qlora", "r": 64}}, 12.52, 9800),
        (2560, {"method": {"name": "qlora", "r": 64}}, 14.01, 10013),
        (2048, {"method": {"r": 64}}, 21.50, 12055),
    ],
)
def test_a_gpu_takes_what_was_measured(row_tokens, options, tensors, tokens_per_s) -> None:
    train = {"max_tokens_per_row": row_tokens, "global_batch_size": 64}
    settings = config(SHAPES / "llama-2-7b", train=train, **options)
    tokens = row_tokens // 16
    report = plan(inputs_of(settings, Cluster(gpu="H200"), AssumedData(1024, tokens)))
    memory = report["memory"]
    assert memory["row_tokens"] == row_tokens
    held = memory["total"] - memory["parts"]["unused"] - memory["parts"]["runtime"]
    assert held == pytest.approx(tensors, rel=0.05)
    assert report["step"]["tokens_per_s"] == pytest.approx(tokens_per_s, rel=0.25)
    assert report["step"]["collective"] == "nccl"


def test_gpus_are_chosen_as_a_run_would() -> None:
    settings = config(SHAPES / "llama-2-7b", method={"name": "qlora", "r": 64})
    two = plan(inputs_of(settings, Cluster(gpu="T4", ranks=2), AssumedData(1024, 118)))
    assert "1 node of 2 T4, 2 ranks in total, one GPU each, float16" in "\n".join(lines(two))
    assert two["memory"]["available"] == named_gpus("T4", 1, "auto").gpu_memory / GIB
    assert two["memory"]["fits"]
    assert two["step"]["parts"]["host"] == 0  # so slow a GPU never waits for Python
    bf16 = config(SHAPES / "llama-2-7b", method={"r": 64})
    changes = plan(inputs_of(bf16, Cluster(gpu="T4"), AssumedData(1024, 118)))["change"]
    assert changes[0].startswith("method.name=qlora: ")
    for wrong, cluster, part in (
        ({"backend": {"name": "cpu"}}, Cluster(gpu="T4"), "--gpu T4: backend.name=cpu"),
        ({"model": {"base_dtype": "int8"}}, Cluster(gpu="T4"), "base_dtype=int8"),
        ({}, Cluster(gpu="T4", cpu="8480+"), "--gpu and --cpu"),
        ({}, Cluster(gpu="Voodoo"), "A100"),
        ({"backend": {"name": "cuda"}}, Cluster(cpu="8480+"), "--gpu"),
        ({"backend": {"name": "ipex"}}, Cluster(gpu="T4"), "backend.name=ipex"),
    ):
        with pytest.raises(UserError, match=part):
            inputs_of(config(SHAPES / "llama-2-7b", **wrong), cluster, None)
    with pytest.raises(UserError, match="CPUs only"):
        swept(inputs_of(settings, Cluster(gpu="T4"), AssumedData(64, 118)), "threads", [1])


def test_a_run_whose_examples_are_not_counted_has_no_number_of_steps(seven) -> None:
    def planned(train: dict[str, object] | None = None, watts: float = 1000.0) -> dict[str, Any]:
        data = {"max_length": 600, "train": "not-there.jsonl", "eval_fraction": 0.1}
        settings = config(SHAPES / "llama-2-7b", data=data, train=train or {})
        examples = example_lengths(settings, None)
        return plan(replace(inputs(settings, seven, watts=watts), examples=examples))

    report = planned()
    assert "not-there.jsonl" in report["data"]["source"]
    assert report["step"]["tokens"] == 16 * 300
    assert report["data"]["steps"] is None
    assert set(report["run"].values()) == {None}
    assert report["checkpoint"]["kept"] == 2 * report["checkpoint"]["each"]
    (line,) = (line for line in lines(report) if line.startswith("the run"))
    assert "unknown" in line and "--examples" in line
    assert sweep_table([report | {"value": 1}], "nodes").rows[0][-2:] == ("", "")

    report = planned({"max_steps": 7})
    assert report["run"]["steps"] == 7
    assert report["run"]["seconds"] == pytest.approx(7 * report["step"]["seconds"])
    assert report["run"]["evaluation_seconds"] is None
    assert any("without evaluation" in line for line in lines(report))


def test_a_sweep_goes_over_one_thing(seven) -> None:
    start = inputs(config(SHAPES / "llama-2-7b"), seven)
    points = swept(start, "nodes", [1, 2])
    assert [point["cluster"]["nodes"] for point in points] == [1, 2]
    assert [p["cluster"]["threads"] for p in swept(start, "threads", [1, 4])] == [1, 4]
    rows = swept(start, "row-tokens", [1024, 4096])
    assert [point["data"]["row_capacity"] for point in rows] == [1024, 4096]
    assert rows[0]["memory"]["total"] < rows[1]["memory"]["total"]
    table = sweep_table(points, "nodes")
    assert [row[0] for row in table.rows] == ["1", "2"]
    assert len(table.rows[0]) == len(table.columns)
    assert plotted(points, "nodes").count("<polyline") == 2
    assert values_of(start, "threads", None) == [1, 2, 4]
    assert values_of(start, "row-tokens", None)[0] == 1024
    with pytest.raises(UserError, match="--values"):
        values_of(start, "nodes", "0,1")
    with pytest.raises(UserError, match="a rank of this cluster has 4 cores"):
        swept(start, "threads", [8])
