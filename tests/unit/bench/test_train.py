"""The benchmark's arithmetic: workloads are seeded, medians and ratios are what they say."""

import dataclasses
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from intel_ft.artifacts.ir_weights import dequantize, unpack
from intel_ft.backends import cpu
from intel_ft.bench import gemm as bench_gemm
from intel_ft.bench import step_timer, train, worker
from intel_ft.bench import task as task_module
from intel_ft.bench.gemm import kernel_name
from intel_ft.bench.step_timer import StepTimer, Tally
from intel_ft.bench.tables import gemm_table, train_table
from intel_ft.bench.task import Task, require_peer
from intel_ft.bench.workloads import (
    WORKLOADS,
    int4_base,
    random_model,
    shape_model,
    synthetic_examples,
    workload,
)
from intel_ft.decisions import Decision
from intel_ft.distributed.world import World
from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError
from intel_ft.export.fake_quantize import FakeQuantized
from intel_ft.host import topology
from intel_ft.host.devices import CPU
from intel_ft.kernels.gemm.register_rate import RegisterRate
from intel_ft.layers import int8, prepacked
from intel_ft.models import gemm_rate
from intel_ft.models.flops import StepCost, step_cost
from intel_ft.models.gemm_rate import Gemm, GemmTiming
from intel_ft.templates.answers import Pairs

TINY = WORKLOADS["tiny"]


def test_examples_are_seeded():
    first, again, other = (synthetic_examples(TINY, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.tokens, again.tokens)
    assert np.array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.offsets, other.offsets)
    assert len(first) == TINY.batch * TINY.steps
    assert first.tokens.max() < TINY.vocabulary


def test_alpaca_lengths_are_clipped_and_completions_supervised():
    examples = synthetic_examples(dataclasses.replace(TINY, steps=1000), 0)
    completion = examples.supervised_counts
    prompt = examples.lengths - completion
    assert prompt.min() == 20 and prompt.max() <= 400
    assert (completion.min(), completion.max()) == (5, 400)
    assert np.median(prompt) == pytest.approx(np.exp(3.9), rel=0.05)
    assert np.median(completion) == pytest.approx(np.exp(3.8), rel=0.05)
    tokens, supervised = examples[3]
    assert len(tokens) == examples.lengths[3]
    assert list(supervised) == [False] * prompt[3] + [True] * completion[3]


def test_long_documents_are_supervised_but_for_the_first_token():
    examples = synthetic_examples(workload("tiny", "long"), 0)
    assert examples.lengths.min() >= 2000 and examples.lengths.max() <= 8000
    assert np.array_equal(examples.supervised_counts, examples.lengths - 1)
    assert not examples[1][1][0]


def test_fixed_examples_fill_a_row_each():
    chosen = workload("tiny", "fixed", row_tokens=33)
    assert (chosen.batch, chosen.row_tokens) == (1, 33)
    examples = synthetic_examples(chosen, 0)
    assert len(examples) == chosen.steps
    assert set(examples.lengths) == {33} and set(examples.supervised_counts) == {17}
    assert list(examples[2][1]) == [False] * 16 + [True] * 17


def test_dpo_has_pairs_of_the_same_lengths():
    chosen = workload("tiny", loss="dpo")
    pairs = synthetic_examples(chosen, 0)
    assert isinstance(pairs, Pairs) and len(pairs) == chosen.batch * chosen.steps
    prompts = pairs.answers.lengths - pairs.answers.supervised_counts
    assert (prompts[::2] == prompts[1::2]).all()
    assert pairs.lengths.max() <= chosen.row_tokens
    with pytest.raises(UserError, match="alpaca"):
        workload("tiny", "long", loss="dpo")
    with pytest.raises(UserError, match="transformers does not train on pairs"):
        train.bench_train(Task("ours", chosen), ["transformers"], 1)


def test_choices_change_the_workload():
    chosen = workload("small", row_tokens=4096, batch=3)
    assert (chosen.row_tokens, chosen.batch, chosen.hidden) == (4096, 3, 1024)
    assert workload("small", "long").row_tokens >= 8000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("huge",), "small"),
        (("tiny", "short"), "alpaca"),
        (("tiny", "alpaca", 100), "800"),
        (("tiny", "fixed", 7), "8"),
    ],
)
def test_unknown_choices_are_user_errors(arguments, named):
    with pytest.raises(UserError, match=named):
        workload(*arguments)


def test_random_model_is_seeded_bf16_and_frozen():
    first, again, other = (random_model(TINY, seed, "sdpa") for seed in (1, 1, 2))
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert a.dtype == torch.bfloat16 and not a.requires_grad
        assert torch.equal(a, b), name
    weight = first.model.layers[1].mlp.up_proj.weight.float()
    assert weight.std() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert torch.equal(first.model.norm.weight.float(), torch.ones(TINY.hidden))


def test_an_int4_base_is_the_model_rounded():
    model = random_model(TINY, 0, "sdpa")
    base = int4_base(model)
    linears = {name for name, one in model.named_modules() if type(one) is torch.nn.Linear}
    assert set(base.weights) == linears - {"lm_head"}
    for name, tensor in base.weights.items():
        weight = model.get_submodule(name).weight.float()
        error = (weight - torch.from_numpy(dequantize(tensor))).abs()
        assert (
            error.view(*tensor.scales.shape, -1)
            .amax(-1)
            .le(torch.from_numpy(0.6 * tensor.scales))
            .all()
        )
        trained = FakeQuantized(tensor, rank=0)
        codes, _, zeros = trained.stored(weight)
        assert np.array_equal(codes.ravel(), unpack(tensor.codes, codes.size))
        assert np.array_equal(zeros, tensor.zeros)
        assert (tensor.bits, tensor.group) == (4, {64: 64, 176: 16}[tensor.shape[1]])


def test_products_are_those_of_the_model():
    products = gemm_rate.linear_gemms(shape_model(WORKLOADS["llama3-8b-slice"], 16), 2048, 0.5)
    counted = {(p.rows, p.inner, p.columns): p.count for p in products}
    assert counted == {
        (2048, 4096, 4096): 2 * 4,
        (2048, 4096, 1024): 2 * 4,
        (2048, 4096, 14336): 2 * 4,
        (2048, 14336, 4096): 4,
        (1024, 4096, 128256): 1,
    }


def test_a_mixtures_products_are_of_each_experts_share_of_the_tokens():
    chosen = WORKLOADS["qwen3-30b-a3b-slice"]
    shapes = shape_model(chosen, 16)
    counted = {
        (p.rows, p.inner, p.columns): p.count for p in gemm_rate.linear_gemms(shapes, 2048, 0.5)
    }
    assert counted == {
        (2048, 2048, 4096): 4,
        (2048, 2048, 512): 2 * 4,
        (2048, 4096, 2048): 4,
        (128, 2048, 1536): 4 * 128,
        (128, 768, 2048): 4 * 128,
        (1024, 2048, 151936): 1,
    }
    # 8 of 128 experts for a token: 4 operations a frozen weight, 6 one of LoRA.
    attention, expert = 2 * 2048 * (4096 + 512), 3 * 2048 * 768
    lora = 16 * (2 * (2048 + 4096) + 2 * (2048 + 512))
    lora += 8 * (32 * (2048 + 1536) + 16 * (768 + 2048))
    assert step_cost(shapes).linear == 4 * (4 * (attention + 8 * expert) + 6 * lora)


def test_total_rate_weighs_by_operations_and_takes_the_best_kind():
    wide, narrow = Gemm(10, 10, 10, count=3), Gemm(10, 10, 5)
    timings = [
        GemmTiming(
            wide, {"plain": 2.0, "prepacked": 1.0, "gradient": 3.0, "gradient_prepacked": 4.0}
        ),
        GemmTiming(narrow, {"plain": 1.0, "gradient": 0.5}),
    ]
    flops = 3 * 2 * 2000.0 + 2 * 1000.0
    assert gemm_rate.total_rate(timings) == pytest.approx(flops / (3 * (1.0 + 3.0) + 1.5))


def test_a_part_of_a_product_is_smaller_but_not_tiny():
    head = Gemm(2048, 4096, 128256)
    part = gemm_rate.part_of(head, 2.5e10)
    assert (part.rows, part.inner, part.columns) == (372, 4096, 8192)
    assert gemm_rate.part_of(head, 1e9).rows == 256
    small = Gemm(100, 64, 64, 7)
    assert gemm_rate.part_of(small, 2.5e10) == small


def test_measured_rates_are_of_the_right_size():
    product = Gemm(128, 256, 512)
    timing = gemm_rate.measure(
        product, torch.bfloat16, (*gemm_rate.FORWARD, *gemm_rate.GRADIENT, "int8"), 0.01
    )
    assert {"plain", "gradient", "int8"} <= set(timing.seconds)
    rates = [product.flops / seconds for seconds in timing.seconds.values()]
    assert min(rates) > 1e8 and max(rates) < 1e15
    assert 1e8 < gemm_rate.model_rate([product], torch.float32, 0.01) < 1e15


@pytest.mark.parametrize(("kind", "inner"), [("prepacked", 32), ("gradient_prepacked", 12288)])
def test_a_wide_product_is_timed_in_parts_too_as_a_step_multiplies_it(monkeypatch, kind, inner):
    laid_out = []

    def lay(weight, widest, tokens):
        laid_out.append((tuple(weight.shape), widest, tokens))
        seconds = 0.002 if widest == prepacked.WIDEST else 0.2
        return SimpleNamespace(linear=lambda *_: time.sleep(seconds))

    monkeypatch.setattr(gemm_rate, "can_prepack", lambda dtype: True)
    monkeypatch.setattr(gemm_rate, "prepack", lay)
    product = Gemm(4, inner, 12288 if inner == 32 else 32)
    timing = gemm_rate.measure(product, torch.bfloat16, (kind,), 0.01)
    assert laid_out == [((12288, 32), widest, 4) for widest in (prepacked.WIDEST, 12288)]
    assert timing.seconds[kind] < 0.1
    laid_out.clear()
    gemm_rate.measure(Gemm(4, 32, 64), torch.bfloat16, ("prepacked",), 0.01)
    assert laid_out == [((64, 32), 64, 4)]


def test_int8_is_timed_as_the_int8_base_multiplies(monkeypatch):
    product, kinds = Gemm(8, 32, 64), (*gemm_rate.INT8_FORWARD, *gemm_rate.INT8_GRADIENT)
    monkeypatch.setattr(gemm_rate, "can_int8", lambda: False)
    monkeypatch.setattr(gemm_rate, "own_int8_base", lambda dtype: None)
    assert not gemm_rate.measure(product, torch.bfloat16, kinds, 0.01).seconds
    monkeypatch.setattr(gemm_rate, "can_int8", lambda: True)
    quantized, quantize = [], int8.ops.quantize
    monkeypatch.setattr(
        int8.ops, "quantize", lambda x, *a: quantized.append(x.shape) or quantize(x, *a)
    )
    timing = gemm_rate.measure(product, torch.bfloat16, kinds, 0.0)
    assert tuple(timing.seconds) == ("int8_prepacked", "int8_gradient_prepacked")
    counts = {tuple(shape): quantized.count(shape) for shape in quantized}
    assert counts == {(64, 32): 2, (8, 32): 3, (8, 64): 3}  # the weight, activations, gradients
    monkeypatch.setattr(gemm_rate, "own_int8_base", lambda dtype: (int8.int8_base, "ours"))
    assert tuple(gemm_rate.measure(product, torch.bfloat16, kinds, 0.0).seconds) == kinds


@pytest.mark.parametrize("can_int8", [False, True])
def test_a_product_that_this_cpu_lacks_is_a_dash(monkeypatch, can_int8):
    monkeypatch.setattr(bench_gemm.cpu, "select", lambda *_: SimpleNamespace(threads=1))
    monkeypatch.setattr(bench_gemm, "onednn_kernel", lambda product: None)
    monkeypatch.setattr(gemm_rate, "memory_bandwidth", lambda: 1e9)
    monkeypatch.setattr(gemm_rate, "can_prepack", lambda dtype: False)
    for module in (gemm_rate, bench_gemm):
        monkeypatch.setattr(module, "can_int8", lambda: can_int8)

    def measure(product, dtype, kinds, seconds):
        known = [k for k in kinds if "own" not in k]
        found = [k for k in known if "prepacked" not in k or (can_int8 and k.startswith("int8"))]
        return GemmTiming(product, dict.fromkeys(found, product.flops / 2000000000.0))

    monkeypatch.setattr(gemm_rate, "measure", measure)
    rates = [RegisterRate("tdp", 4e9), RegisterRate("tdp", 8e9)]  # the CPU slows down and recovers
    monkeypatch.setattr(
        bench_gemm,
        "register_rate",
        lambda dtype, *, back_to_back: (
            RegisterRate("tdp", 3e9)
            if back_to_back
            else rates[len(limits) % 2]
            if dtype == torch.bfloat16 and not limits.append(0)
            else None
        ),
    )
    limits: list[int] = []
    tiles = {torch.bfloat16: "tdpbf16ps", torch.int8: None, torch.float32: "vfmadd"}
    monkeypatch.setattr(bench_gemm, "instruction_of", tiles.get)
    report = bench_gemm.bench_gemm(TINY, 1, 0.01)
    assert report["registers"]["bfloat16"]["back_to_back_gflops"] == pytest.approx(3)
    assert report["own"] == {}
    assert report["int8_prepacked_gops"] == (pytest.approx(2.0) if can_int8 else None)
    table = gemm_table(report)
    assert table.columns[3:] == (
        *("plain", "prepacked", "own", "gradient", "gradient prepacked", "gradient own", "int8"),
        *("int8 prepacked", "int8 own", "int8 gradient prepacked", "int8 gradient own"),
        *("bf16 of registers", "int8 of registers"),
    )
    packed = "2" if can_int8 else "-"
    rates_of_kinds = ("2", "-", "-", "2", "-", "-", "2", packed, "-", packed, "-")
    assert {row[3:] for row in table.rows} == {(*rates_of_kinds, "0.33", "-")}
    assert any("tdp 8 (back to back 3)" in note for note in table.notes)
    assert report["unreliable"] == [] and not any("Unreliable" in note for note in table.notes)
    share = report["products"][0] | {"register_share": {"bfloat16": 1.25}}
    above = bench_gemm._above_registers([share], {"int8": {"register_share": 1.5}})
    assert above[0].endswith("bfloat16: 1.25 of the register rate")
    assert above[1] == "all, int8: 1.50 of the register rate"
    assert any("Unreliable" in note for note in gemm_table(report | {"unreliable": above}).notes)
    assert (", prepacked 2." in table.notes[0]) == can_int8


def test_our_products_are_compared_with_onednns_fastest_form_in_each_direction():
    """Over the whole set: the seconds of every GEMM as often as the model has it."""
    forward = {"plain": 4.0, "prepacked": 3.0, "own": 1.0}
    gradient = {"gradient": 2.0, "gradient_prepacked": 6.0, "gradient_own": 1.0}
    timings = [
        GemmTiming(Gemm(1, 1, 500_000_000, 2), forward | gradient),
        GemmTiming(Gemm(1, 1, 500_000_000, 1), dict.fromkeys(forward | gradient, 1.0)),
    ]
    limits = {"bfloat16": {"instruction": "tdp", "gflops": 8.0, "back_to_back_gflops": 4.0}}
    found = bench_gemm._own_rates(timings, limits)
    assert set(found) == {"bfloat16"}
    assert found["bfloat16"] == pytest.approx(
        {
            "gflops": 1.0,
            "over_onednn": 12 / 6,
            "over_onednn_forward": 7 / 3,
            "over_onednn_gradient": 5 / 3,
            "register_share": 1 / 8,
            "back_to_back_share": 1 / 4,
        }
    )


def test_onednn_names_its_kernel():
    verbose = (
        "onednn_verbose,v1,info,cpu,runtime:OpenMP,nthr:2\n"
        "onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:bf16\n"
        "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx10_1_512_amx,undef,src:bf16\n"
    )
    assert kernel_name(verbose) == "brg_matmul:avx10_1_512_amx"
    assert kernel_name("") is None


def test_tally_gives_the_cost_of_its_segments():
    tally = Tally()
    tally.add([3, 4], 2)
    tally.add([5], 1)
    assert StepCost(1.0, 100.0, 10000.0).flops(tally.as_row()) == 12 + 100 * 50 + 10000 * 3


def _timed(monkeypatch, seconds, ends):
    """A timer that starts at 100 s and sees steps end at these times; when it stops training."""
    now = iter([100.0, *ends])
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: next(now))
    timer = StepTimer(tally := Tally(), seconds, lambda index: tally.add([index], 1))
    state, stopped = TrainerState(), []
    on_cpu = SimpleNamespace(device=CPU)
    timer.on_train_begin(on_cpu, state, TrainerControl())
    for state.global_step in range(1, len(ends) + 1):
        stopped.append(timer.on_step_end(on_cpu, state, TrainerControl()).should_training_stop)
    return timer, stopped


def test_the_step_timer_excludes_the_warm_up(monkeypatch):
    ends = [101.0, 111.0, 112.0, 114.0, 115.0, 116.0, 117.0, 118.0]
    timer, stopped = _timed(monkeypatch, 5.5, ends)
    assert stopped == [False] * 6 + [True, True]  # 5 s at step 6 is not enough, 6 s at step 7 is
    assert timer.step_times == [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    assert timer.tally.lengths == [2, 3, 4, 5, 6, 7] and timer.tally.supervised == 6


def test_the_step_timer_takes_fewer_steps_if_they_are_long(monkeypatch):
    timer, stopped = _timed(monkeypatch, 5.5, [161.0, 221.0, 281.0])
    assert stopped == [False, False, True]
    assert timer.step_times == [60.0, 60.0]
    assert timer.tally.lengths == [1, 2]


def _measured(tokens_per_s, rss, times):
    return {
        "tokens_per_s": tokens_per_s,
        "supervised_tokens_per_s": tokens_per_s / 2,
        "mfu": tokens_per_s / 1000,
        "peak_rss_gib": rss,
        "gemm_gflops": 400.0,
        "step_s": float(np.median(times)),
        "step_times": times,
        "threads": 2,
        "torch": "2.13.0",
    }


def _play(monkeypatch, results):
    """Let each run return its contender's next result, or raise it; returns the order of runs."""
    order = []

    def run(task):
        order.append(task.contender)
        result = results[task.contender].pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(train, "run_task", run)
    monkeypatch.setattr(train, "require_peer", lambda peer: None)
    return order


def test_contenders_take_turns_and_medians_are_compared(monkeypatch):
    results = {
        "ours": [_measured(t, 2.0, [1.0, 2.0, 3.0]) for t in (90.0, 100.0, 500.0)],
        "trl": [_measured(t, 4.0, [8.0]) for t in (20.0, 25.0, 1.0)],
    }
    order = _play(monkeypatch, results)
    report = train.bench_train(Task("ours", TINY), ["trl", "trl"], 3)
    assert order == ["ours", "trl"] * 3
    assert report["ours"]["tokens_per_s"] == 100.0
    assert report["ours"]["step_s_p10"] == 1.0 and report["ours"]["step_s_p90"] == 3.0
    assert report["peers"]["trl"]["ratio"] == 100.0 / 20.0
    assert report["peers"]["trl"]["rss_ratio"] == 0.5
    assert [run["tokens_per_s"] for run in report["ours"]["runs"]] == [90.0, 100.0, 500.0]
    assert "step_times" not in report["ours"]["runs"][0]
    table = train_table(report)
    assert table.columns == ("tiny, alpaca", "ours", "trl")
    assert ("token/s, ours/peer", "", "5.00") in table.rows
    assert "| MFU | 0.100 | 0.020 |" in table.markdown()
    assert report["machine"]["gemm_spread"] == 1.0
    assert not any("Unreliable" in note for note in table.notes)


def test_a_machine_in_use_is_said(monkeypatch):
    slow = {**_measured(1.0, 1.0, [1.0]), "gemm_gflops": 200.0}
    _play(monkeypatch, {"ours": [slow], "trl": [_measured(1.0, 1.0, [1.0])]})
    report = train.bench_train(Task("ours", TINY), ["trl"], 1)
    assert report["machine"]["gemm_spread"] == 2.0
    assert "2.00" in train_table(report).notes[0]


def test_a_rate_above_the_register_rate_is_called_unreliable(monkeypatch):
    limit = {"register_gflops": 300.0, "utilization": 0.5}
    _play(monkeypatch, {"ours": [_measured(1.0, 1.0, [1.0]) | limit]})
    report = train.bench_train(Task("ours", TINY), [], 1)
    assert report["ours"]["unreliable"] == ["GEMMs at 400 GFLOP/s, above 300 from registers alone"]
    (note,) = (note for note in train_table(report).notes if "Unreliable" in note)
    assert "ours: GEMMs at 400" in note
    steps = {"register_gflops": 500.0, "utilization": 1.2}
    _play(monkeypatch, {"ours": [_measured(1.0, 1.0, [1.0]) | steps]})
    report = train.bench_train(Task("ours", TINY), [], 1)
    assert "whole steps at 600 GFLOP/s, above 500" in train_table(report).notes[0]


def test_a_peer_that_fails_is_reported_and_not_run_again(monkeypatch):
    results = {"ours": [_measured(1.0, 1.0, [1.0])] * 2, "trl": [IntelFTError("no memory")]}
    order = _play(monkeypatch, results)
    report = train.bench_train(Task("ours", TINY), ["trl"], 2)
    assert order == ["ours", "trl", "ours"]
    assert report["peers"]["trl"] == {"error": "no memory"}
    assert "trl: no memory" in train_table(report).notes


def test_ours_failing_ends_the_benchmark(monkeypatch):
    _play(monkeypatch, {"ours": [IntelFTError("broken")]})
    with pytest.raises(IntelFTError, match="broken"):
        train.bench_train(Task("ours", TINY), [], 1)


def test_quantiles_are_over_the_steps_of_all_runs():
    values = [30.0, 4.0, 9.0, 16.0, 17.0, 1.0]
    runs = [_measured(1.0, 1.0, values[:2]), _measured(1.0, 1.0, values[2:])]
    summary = train.summarize(runs)
    for key, share in (("step_s_p10", 0.1), ("step_s_p90", 0.9)):
        assert summary[key] == pytest.approx(np.quantile(values, share))


def test_missing_peers_name_the_remedy(monkeypatch):
    versions = {"torch": "2.13.0"}
    monkeypatch.setattr(task_module, "installed", versions.get)
    with pytest.raises(EnvironmentProblem, match="make peers"):
        require_peer("trl-packed")
    with pytest.raises(UserError, match="transformers"):
        require_peer("axolotl")


@pytest.mark.parametrize("peer", task_module.IPEX_CONTENDERS)
def test_ipex_runs_in_a_separate_environment(peer, monkeypatch, tmp_path):
    versions = {"torch": "2.13.0"}
    monkeypatch.setattr(task_module, "installed", versions.get)
    monkeypatch.delenv(task_module.IPEX_PYTHON, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    beside = str(tmp_path / ".venv-ipex/bin/python")
    assert task_module.python_of(peer) == beside and task_module.python_of("trl") == sys.executable
    with pytest.raises(EnvironmentProblem, match=f"{beside}.*: run `make setup-ipex`"):
        require_peer(peer)
    answer = tmp_path / "python"
    answer.write_text("#!/bin/sh\necho 'Traceback' 'Problem: it has torch 9' >&2\nexit 1\n")
    answer.chmod(0o700)
    monkeypatch.setenv(task_module.IPEX_PYTHON, str(answer))
    with pytest.raises(EnvironmentProblem, match=f"{answer}: it has torch 9"):
        require_peer(peer)
    answer.write_text("#!/bin/sh\n")
    require_peer(peer)
    versions |= {"torch": "2.8.0+cpu", "intel_extension_for_pytorch": "2.8.0"}
    assert task_module.python_of(peer) == sys.executable


@pytest.mark.parametrize(("name", "tuned"), [("ours", 2), ("trl", 0), ("transformers", 0)])
def test_peers_get_our_threads_and_not_our_memory(monkeypatch, name, tuned):
    calls, threads = [], []
    for function in ("keep_freed_memory", "keep_few_kernels"):
        monkeypatch.setattr(cpu, function, lambda **_: calls.append(1) or Decision("x", "x", "x"))
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    for task in (Task(name, TINY, threads=1), Task(name, TINY)):
        calls.clear()
        backend = worker._backend(task, World())
        assert (backend.dtype, backend.device) == (torch.bfloat16, CPU)
        assert len(calls) == tuned
        assert threads[-1] == backend.threads == int(os.environ["OMP_NUM_THREADS"])
        assert backend.threads == (task.threads or topology.read().usable)


def test_only_rates_of_one_torch_are_compared(monkeypatch):
    other = {**_measured(1.0, 1.0, [1.0]), "gemm_gflops": 200.0, "torch": "2.8.0"}
    _play(monkeypatch, {"ours": [_measured(1.0, 1.0, [1.0])], "ours-ipex": [other]})
    report = train.bench_train(Task("ours", TINY), ["ours-ipex"], 1)
    assert report["machine"]["gemm_spread"] == 1.0


def test_a_task_survives_its_way_to_the_other_process():
    task = Task("trl", workload("small", "long"), rank=8, threads=3, peer_row_tokens=1024)
    assert Task.from_json(task.to_json()) == task
