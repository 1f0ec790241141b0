"""The CUDA backend: decisions without a GPU; with one, that it computes what the CPU does."""

import io
import json

import pytest
import torch
from support.harness import run, shortest_examples, unforked, write_config

from intel_ft.backends import choice, cpu, cuda
from intel_ft.config import build
from intel_ft.config_sections import BackendConfig, ModelConfig
from intel_ft.decisions import Decision
from intel_ft.distributed.collective import Installed, choose_collective
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.host import devices
from intel_ft.host.launcher_env import TORCHRUN
from intel_ft.kernels import ops, varlen
from intel_ft.layers.nf4 import NF4_BYTES, nf4_base
from intel_ft.training.optimizer_state import fitted, optimizer_name, portable

HAS_GPU = devices.why_no_gpu() is None
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU that torch can use")
needs_none = pytest.mark.skipif(HAS_GPU, reason="there is a GPU")


def config(backend=None, **model):
    return build(
        {
            "model": {"name_or_path": "x", **model},
            "data": {"train": "x"},
            "backend": backend or {},
            "output": {"directory": "x"},
        },
        "test",
    )


@pytest.fixture
def with_gpu(monkeypatch):
    """As the decisions see a machine with a GPU; nothing computes on it."""
    monkeypatch.setattr(devices, "why_no_gpu", lambda: None)
    monkeypatch.setattr(devices, "gpu_name", lambda: "NVIDIA H200")
    choice.choose_by_name.cache_clear()
    yield
    choice.choose_by_name.cache_clear()


@pytest.mark.parametrize(
    ("backend", "model", "part"),
    [
        ({"name": "cuda", "collective": "gloo"}, {}, "backend.collective=gloo"),
        ({"name": "cpu", "collective": "nccl"}, {}, "backend.collective=nccl"),
        ({"name": "cuda", "prepack": True}, {}, "backend.prepack"),
        ({"name": "cuda"}, {"base_dtype": "int8"}, "model.base_dtype=int8"),
    ],
)
def test_settings_of_the_other_backend_are_refused(backend, model, part):
    with pytest.raises(UserError, match=part):
        config(backend, **model)


def test_auto_takes_the_gpu_unless_the_config_asks_for_what_cpus_do(with_gpu):
    decision = choice.choose(config())
    assert (decision.value, "H200" in decision.reason) == ("cuda", True)
    for backend, model in (
        ({"collective": "ccl"}, {}),
        ({"prepack": True}, {}),
        ({}, {"base_dtype": "int8"}),
        ({"name": "cpu"}, {}),
    ):
        assert choice.choose(config(backend, **model)).value == "cpu"
    assert choice.choose(config({"prepack": True})).reason.startswith("backend.prepack=true")


@needs_none
def test_auto_without_a_gpu_is_the_cpu_and_says_why():
    decision = choice.choose(config())
    assert decision.value == "cpu"
    assert devices.why_no_gpu() in decision.reason


@needs_none
@pytest.mark.parametrize("verb", ["validate", "train"])
def test_cuda_that_is_not_there_is_one_line_and_exit_code_3(verb, tmp_path):
    shortest_examples(tmp_path / "train.jsonl", 0, 8)
    path = write_config(tmp_path / "config.yaml")
    result = run(verb, path, "backend.name=cuda", cwd=tmp_path)
    assert result.code == 3, result.err
    assert result.last_line.startswith("error: backend.name=cuda: ")
    assert "backend.name=cpu" in result.last_line
    assert "Traceback" not in result.err


def test_older_gpus_multiply_in_fp16():
    auto, bf16 = (ModelConfig(name_or_path="x", dtype=name) for name in ("auto", "bfloat16"))
    assert cuda.dtype_for(auto, (9, 0))[0] == torch.bfloat16
    assert cuda.dtype_for(auto, (7, 5))[0] == torch.float16
    assert cuda.dtype_for(bf16, (8, 0))[0] == torch.bfloat16
    with pytest.raises(UserError, match="float16"):
        cuda.dtype_for(bf16, (7, 5))


def test_fp16_is_not_for_cpus():
    with pytest.raises(UserError, match="float16 works only on GPUs"):
        cpu.select(BackendConfig(), ModelConfig(name_or_path="x", dtype="float16"))


def test_ranks_on_gpus_talk_through_nccl():
    for nccl in (True, False):
        installed = Installed(nccl=nccl, mpi=False, why_no_oneccl=lambda: None)

        def chosen(compute, **backend):
            return choose_collective(
                BackendConfig(**backend),
                compute=compute,
                launcher=TORCHRUN,
                installed=installed,  # noqa: B023 - called in this turn of the loop
            )

        if nccl:
            assert chosen("cuda").value == "nccl"
        else:
            with pytest.raises(EnvironmentProblem, match="NCCL"):
                chosen("cuda")
        with pytest.raises(EnvironmentProblem, match="nccl"):
            chosen("cpu", collective="nccl")
    assert Installed.detect().nccl == torch.distributed.is_nccl_available()


def test_a_paged_optimizer_is_a_plain_one_on_a_cpu():
    assert optimizer_name("paged_adamw_32bit", torch.device("cpu")) == "adamw_torch_fused"
    assert optimizer_name("paged_adamw_32bit", torch.device("cuda", 0)) == "paged_adamw_32bit"
    assert optimizer_name("sgd", torch.device("cpu")) == "sgd"


@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_a_checkpoint_goes_from_the_paged_optimizer_to_torchs_and_back():
    """Three steps with one, three with the other: the same weights as six with either."""
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def paged(weight):
        return bitsandbytes.optim.AdamW(
            [weight], lr=1e-3, is_paged=True, optim_bits=32, weight_decay=0.0
        )

    def plain(weight):
        return torch.optim.AdamW([weight], lr=1e-3, fused=True, weight_decay=0.0)

    torch.manual_seed(0)
    start, gradients = torch.randn(64, 128), torch.randn(6, 64, 128)

    def steps(weight, optimizer, which):
        for index in which:
            weight.grad = gradients[index].clone()
            optimizer.step()

    def through_a_file(state):
        file = io.BytesIO()
        torch.save(portable(state), file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    expected = torch.nn.Parameter(start.clone())
    steps(expected, plain(expected), range(6))
    for first, second in ((paged, plain), (plain, paged)):
        weight = torch.nn.Parameter(start.clone())
        before = first(weight)
        steps(weight, before, range(3))
        after = second(weight)
        saved = through_a_file(before.state_dict())
        assert set(saved["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
        after.load_state_dict(fitted(saved, after.state_dict(), paged=second is paged))
        steps(weight, after, range(3, 6))
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_nf4_is_as_small_as_the_memory_check_takes_it_for():
    base = nf4_base(torch.randn(512, 1024), None)
    second = base.state.state2
    parts = (base.values, base.state.absmax, second.absmax)
    assert sum(part.nbytes for part in parts) == pytest.approx(512 * 1024 * NF4_BYTES, rel=1e-3)


def test_apply_rope_backward_is_the_gradient_of_apply_rope():
    q, k, of_q, of_k = (torch.randn(9, heads, 8, dtype=torch.float64) for heads in (4, 2, 4, 2))
    cos, sin = torch.randn(2, 9, 8, dtype=torch.float64)
    q.requires_grad_()
    k.requires_grad_()
    expected = torch.autograd.grad(ops._apply_rope(q, k, cos, sin), (q, k), (of_q, of_k))
    for result, gradient in zip(
        ops._apply_rope_backward(of_q, of_k, cos, sin), expected, strict=True
    ):
        torch.testing.assert_close(result, gradient)


def apart(result, expected) -> float:
    return float(
        (result.float().cpu() - expected.float().cpu()).norm() / expected.float().norm().cpu()
    )


@needs_gpu
def test_generated_kernels_compute_the_formulas():
    torch.manual_seed(0)
    x, grad, residual = torch.randn(3, 384, 256, device="cuda", dtype=torch.bfloat16)
    weight = torch.rand(256, device="cuda", dtype=torch.bfloat16) + 0.5
    logits, targets = x.clone(), torch.randint(256, (384,), device="cuda")
    targets[::5] = -100

    def all_of_them(*tensors):
        x, grad, residual, weight, logits = tensors
        yield ops.rms_norm(x, weight, 1e-5)
        yield ops.rms_norm_backward(x, weight, grad, 1e-5, residual)
        yield ops.swiglu(x, grad)
        yield from ops.swiglu_backward(x, grad, residual)
        yield ops.cross_entropy(logits, targets.to(logits.device))
        yield logits

    here = (x, grad, residual, weight, logits)
    expected = [*all_of_them(*(tensor.float().cpu() for tensor in here))]
    for result, one in zip(all_of_them(*here), expected, strict=True):
        assert apart(result, one) < 0.01


@needs_gpu
@pytest.mark.parametrize("parents", [None, [-1, 0, 1, 0]])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 128), (8, 2, 64)])
def test_attention_over_all_segments_at_once_is_attention_in_each(heads, kv_heads, dim, parents):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(700, n, dim, device="cuda", dtype=torch.bfloat16)
        for n in (heads, kv_heads, kv_heads)
    )
    turn = torch.randn(700, dim // 2, device="cuda").repeat(1, 2)
    cos, sin, grad = turn.cos().bfloat16(), turn.sin().bfloat16(), torch.randn_like(q)
    parents = None if parents is None else torch.tensor(parents)
    rest = (torch.tensor([0, 1, 100, 513, 700]), parents, dim**-0.5)
    assert varlen.usable(q)

    def all_of_them(*tensors):
        *given, grad = tensors
        out, logsumexp = ops.attention(*given, *rest)
        return out, *ops.attention_backward(*given, *rest, out, logsumexp, grad)

    here = (q, k, v, cos, sin, grad)
    for result, one in zip(
        all_of_them(*here), all_of_them(*(t.float().cpu() for t in here)), strict=True
    ):
        assert apart(result, one) < 0.01


@needs_gpu
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_run_on_the_gpu_loses_as_much_as_on_the_cpu_and_either_resumes_the_other(
    method, tmp_path
):
    shortest_examples(tmp_path / "train.jsonl", 0, 16)
    path = write_config(tmp_path / "config.yaml", method={"name": method, "r": 4})

    def losses(name, backend, *more):
        overrides = (f"backend.name={backend}", f"output.directory={name}")
        result = unforked("train", path, *overrides, *more, cwd=tmp_path)
        assert result.code == 0, result.err
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "loss" in line]

    expected = losses("cpu", "cpu")
    assert losses("cuda", "cuda") == pytest.approx(expected, rel=0.01)
    for name, other in (("cpu", "cuda"), ("cuda", "cpu")):
        for last in ("checkpoint-4", "adapter"):  # as if it had been killed after step 2
            (tmp_path / name / last).rename(tmp_path / f"{last}-{name}")
        assert losses(name, other, "--resume") == pytest.approx(expected, rel=0.01)


def test_a_rank_without_a_gpu_is_refused_before_its_dtype_is_asked_for(monkeypatch):
    monkeypatch.setattr(choice, "choose", lambda _: Decision("backend.name", "cuda", "a test"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentProblem, match=r"local rank 3 on .* at most 1 rank per host"):
        choice.dtype_of(config(), 3)
