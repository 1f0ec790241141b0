"""`intel-ft bench` as a user runs it, on the tiny workload."""

import json

import pytest
from support.harness import run

from intel_ft.batching.plan import Plan
from intel_ft.bench.task import WARM_UP_STEPS
from intel_ft.bench.workloads import synthetic_examples, workload

TINY = workload("tiny")


@pytest.fixture
def bench(tmp_path):
    """Run `intel-ft bench ARGUMENTS` to its end, and return what it prints."""

    def printed(*arguments):
        done = run("bench", *arguments, cwd=tmp_path)
        assert done.code == 0, done.err
        return done.out

    return printed


def plan_of(seed):
    """The plan by which the own trainer goes through the tiny examples."""
    examples = synthetic_examples(TINY, seed)
    return Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=TINY.batch,
        max_tokens_per_row=TINY.row_tokens,
        seed=seed,
    )


def tokens_of(plan, steps):
    """Tokens of the first steps after the warm-up."""
    timed = plan.steps(WARM_UP_STEPS, WARM_UP_STEPS + steps)
    return sum(int(plan.lengths[step.examples].sum()) for step in timed)


def test_train_counts_the_examples_and_tokens_of_the_plan(bench):
    arguments = ["train", "--workload", "tiny", "--peer", "transformers", "--seed", "5"]
    printed = bench(*arguments, "--repeat", "1", "--seconds", "0", "--json")
    report = json.loads(printed)
    assert set(report) == {"workload", "ours", "peers", "machine"}
    ours, peer = report["ours"], report["peers"]["transformers"]
    metrics = {"tokens_per_s", "supervised_tokens_per_s", "mfu", "peak_rss_gib", "gemm_gflops"}
    metrics |= {"utilization", "register_gflops"}
    assert metrics | {"step_s", "step_s_p10", "step_s_p90", "runs", "unreliable"} == set(ours)
    assert set(peer) == {*ours, "ratio", "rss_ratio"}
    assert peer["ratio"] == pytest.approx(ours["tokens_per_s"] / peer["tokens_per_s"])
    machine = {"cpu", "cores", "threads", "isa", "torch", "transformers", "load", "gemm_spread"}
    assert set(report["machine"]) == machine

    # Ours: exactly the examples of the plan's steps after the warm-up.
    run, plan = ours["runs"][0], plan_of(5)
    steps = list(plan.steps(WARM_UP_STEPS, WARM_UP_STEPS + run["steps"]))
    assert run["tokens"] == tokens_of(plan, run["steps"])
    assert run["supervised_tokens"] == sum(step.supervised_tokens for step in steps)

    # The peer: the same examples in each step, none padded, their prompts not supervised.
    run = peer["runs"][0]
    assert run["examples"] == run["steps"] * TINY.batch
    assert run["tokens"] == tokens_of(plan, run["steps"])
    assert run["tokens"] - run["supervised_tokens"] >= 20 * run["examples"]
    seconds = run["tokens"] / peer["tokens_per_s"]
    assert run["steps"] * peer["step_s_p10"] * 0.5 < seconds < run["steps"] * 3 * peer["step_s_p90"]


def test_processes_share_the_work_of_every_contender(bench):
    arguments = ["train", "--workload", "tiny", "--peer", "transformers", "--processes", "2"]
    printed = bench(*arguments, "--repeat", "1", "--seconds", "0", "--json")
    report = json.loads(printed)
    ours, peer = report["ours"]["runs"][0], report["peers"]["transformers"]["runs"][0]
    assert (ours["threads"], peer["threads"]) == (report["machine"]["cores"] // 2,) * 2
    assert peer["collective"] == "gloo" and ours["collective"] in ("ccl", "gloo")
    assert "exchange_share" not in peer and 0 < ours["exchange_share"] < 1

    plan = plan_of(0)
    steps = list(plan.steps(WARM_UP_STEPS, WARM_UP_STEPS + ours["steps"]))
    assert ours["tokens"] == tokens_of(plan, ours["steps"])
    assert ours["supervised_tokens"] == sum(step.supervised_tokens for step in steps)
    assert peer["examples"] == peer["steps"] * TINY.batch
    assert peer["tokens"] == tokens_of(plan, peer["steps"])


def test_scale_prints_a_table_and_writes_a_plot(bench, tmp_path):
    plot = tmp_path / "plot.svg"
    sweep = ["scale", "--workload", "tiny", "--over", "row-tokens", "--values", "64,16"]
    printed = bench(*sweep, "--seconds", "0", "--markdown", "--plot", plot)
    lines = printed.splitlines()
    assert lines[0] == "| tiny, row tokens | token/s | MFU | peak memory GiB | step s |"
    assert [line.split()[1] for line in lines[2:4]] == ["16", "64"]
    assert plot.read_text().count("<polyline") == 2


def test_prepare_reports_the_requested_rows(bench):
    printed = bench("prepare", "--rows", "30", "--repeat", "1", "--markdown")
    assert printed.startswith("| 30 rows, tiny-python-llama | ours |")


def test_gemm_prints_a_markdown_table(bench):
    printed = bench("gemm", "--workload", "tiny", "--seconds", "0.01", "--markdown")
    assert printed.startswith("| rows x in x out | layer | count | plain |")
    assert "1024x64x176" in printed and "GB/s" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--workload", "nope"],
        ["train", "--peer", "nope"],
        ["train", "--threads", "100000"],
        ["train", "--processes", "100000"],
        ["train", "--processes", "2", "--threads", "100000"],
        ["train", "--base-dtype", "int2"],
        ["gemm", "--lengths", "nope"],
        ["scale"],
        ["scale", "--over", "nope"],
        ["scale", "--over", "rank", "--values", "8,many"],
        ["scale", "--over", "threads", "--values", "1,100000"],
        ["scale", "--over", "rank", "--plot", "no/such/folder.svg"],
        ["quality", "--contender", "nope"],
        ["quality", "--threads", "100000"],
        ["prepare", "--peer", "nope"],
    ],
)
def test_mistakes_are_one_line(arguments, tmp_path):
    done = run("bench", *arguments, cwd=tmp_path)
    assert done.code == 2
    assert done.out == "" and len(done.err.strip().splitlines()) == 1
