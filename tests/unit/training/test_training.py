"""A run from configuration to adapter on a random-init Llama: what it learns, keeps and records."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

from intel_ft.api import evaluate, merge
from intel_ft.assets import resolve
from intel_ft.batching.plan import Plan
from intel_ft.config import Config, build
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import DataConfig, ModelConfig
from intel_ft.data.prepare import prepare
from intel_ft.distributed.world import World
from intel_ft.errors import IntelFTError, UserError
from intel_ft.models.adapter import add_lora
from intel_ft.models.flops import step_cost
from intel_ft.models.load import load_for_packing
from intel_ft.report.samples import write_samples
from intel_ft.training.meter import Meter
from intel_ft.training.run import train
from intel_ft.training.step import validation_loss
from intel_ft.training.trainable import Adapter
from intel_ft.training.trainer import PlanTrainer
from intel_ft.training.workload import Training, TrainingData, TrainingModel

WORDS = ("def", "return", "class", "import", "while", "yield", "lambda", "raise", "global", "try")
LEARN = [{"prompt": f"word {i}", "completion": f"{word} {word}"} for i, word in enumerate(WORDS)]
# The same questions with other answers: the better the first are learnt, the worse these go.
CONTRADICT = [
    {"prompt": f"word {i}", "completion": f"{word} {word}"}
    for i, word in enumerate(reversed(WORDS))
]
STEP_FIELDS = {
    "step", "epoch", "loss", "lr", "grad_norm", "tokens", "computed_tokens", "supervised_tokens",
    "tokens_per_s", "mfu", "utilization", "rank_imbalance", "rss_gib", "step_s", "exchange_s",
}  # fmt: skip
EVAL_FIELDS = {"step", "epoch", "eval_loss", "eval_perplexity"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny-python-llama"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,  # so that an adapter can move the logits far
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def configure(base, tmp_path):
    def configure(*, evaluation=None, method=None, **settings) -> Config:
        data = {"template": "alpaca", "max_length": 128}
        for name, rows in (("train", LEARN), ("eval", evaluation)):
            if rows:
                path = tmp_path / f"{name}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                data[name] = str(path)
        plain = {
            "max_steps": 5,
            "global_batch_size": 10,
            "scheduler": "constant",
            "learning_rate": 0.02,
            "max_tokens_per_row": 128,
            "report_to": [],
        }
        return build(
            {
                "model": {"name_or_path": str(base), "dtype": "float32"},
                "data": data,
                "method": {"r": 8, "alpha": 16} | (method or {}),
                "train": plain | settings,
                "backend": {"threads": 1},
                "output": {"directory": str(tmp_path / "run")},
            },
            "test",
        )

    return configure


def metrics(config) -> tuple[list[dict], list[dict]]:
    """The lines of steps and of evaluations."""
    path = config.output.directory / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [x for x in lines if "loss" in x], [x for x in lines if "eval_loss" in x]


def trained_model(config):
    base = AutoModelForCausalLM.from_pretrained(config.model.name_or_path, dtype=torch.float32)
    return PeftModel.from_pretrained(base, config.output.directory / "adapter").eval()


@torch.no_grad()
def plain_loss(model, config, source) -> float:
    """Mean loss a supervised token, by Transformers alone, an example at a time."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
    examples = prepare(config.data, source, tokenizer).examples
    total = 0.0
    for index in range(len(examples)):
        tokens, supervised = map(torch.from_numpy, examples[index])
        labels = torch.where(supervised, tokens.long(), -100)
        loss = model(input_ids=tokens.long()[None], labels=labels[None]).loss
        total += float(loss) * int(supervised.sum())
    return total / int(examples.supervised.sum())


def test_it_memorises_a_few_examples_and_writes_an_adapter_that_has(configure) -> None:
    config = configure(max_steps=30)
    summary = train(config)
    steps, _ = metrics(config)
    losses = [line["loss"] for line in steps]
    assert len(losses) == summary.steps == 30
    assert losses[-1] < 0.5 * losses[0]
    assert summary.train_loss == losses[-1]
    base = AutoModelForCausalLM.from_pretrained(config.model.name_or_path, dtype=torch.float32)
    assert losses[0] == pytest.approx(plain_loss(base, config, config.data.train), rel=1e-5)
    assert plain_loss(trained_model(config), config, config.data.train) < losses[-1] * 1.2


def test_batches_of_the_plan_are_what_a_step_trains_on(configure) -> None:
    """Three steps an epoch, the last with what is left; tokens add up to the data's, twice."""
    config = configure(max_steps=None, epochs=2, global_batch_size=4)
    summary = train(config)
    steps, _ = metrics(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
    examples = prepare(config.data, config.data.train, tokenizer).examples
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert sum(line["tokens"] for line in steps) == 2 * len(examples.tokens) == summary.tokens
    for epoch in (steps[:3], steps[3:]):
        total = sum(line["supervised_tokens"] for line in epoch)
        assert total == int(examples.supervised.sum())
    assert steps[2]["epoch"] == pytest.approx(1.0)
    assert steps[-1]["epoch"] == pytest.approx(2.0)


def test_metrics_lines_hold_the_documented_fields_and_no_others(configure) -> None:
    config = configure(evaluation=CONTRADICT, eval_steps=2, max_steps=4)
    train(config)
    steps, evaluations = metrics(config)
    assert [set(line) for line in steps] == [STEP_FIELDS] * 4
    assert [set(line) for line in evaluations] == [EVAL_FIELDS] * 2
    assert [line["step"] for line in evaluations] == [2, 4]
    for line in steps:
        assert all(math.isfinite(value) for value in line.values())
        assert line["tokens_per_s"] == pytest.approx(line["tokens"] / line["step_s"], rel=1e-3)
        assert 0 < line["computed_tokens"] < line["tokens"]  # the prompts begin alike
        assert 0 < line["mfu"] < 1
        assert line["rank_imbalance"] == 0
        assert 0.05 < line["rss_gib"] < 64


def test_logging_every_other_step_adds_up_what_lies_between(configure) -> None:
    config = configure(max_steps=4, logging_steps=2)
    train(config)
    steps, _ = metrics(config)
    assert [line["step"] for line in steps] == [2, 4]
    assert steps[0]["tokens"] == steps[1]["tokens"]  # all examples twice, each time
    assert steps[0]["supervised_tokens"] == steps[1]["supervised_tokens"]
    every = configure(max_steps=4)
    train(every, overwrite=True)
    assert metrics(every)[0][0]["tokens"] * 2 == steps[0]["tokens"]


def test_the_summary_counts_what_was_shared_in_all_steps(configure) -> None:
    config = configure(max_steps=3)
    found = train(config).shared_prefix_share
    steps, _ = metrics(config)
    computed, tokens = (sum(line[key] for line in steps) for key in ("computed_tokens", "tokens"))
    assert found == pytest.approx(1 - computed / tokens) and found > 0
    unlogged = configure(max_steps=3, logging_steps=2)  # the last step is in no line
    assert train(unlogged, overwrite=True).shared_prefix_share == pytest.approx(found)
    off = configure(max_steps=1, share_prefixes=False)
    assert train(off, overwrite=True).shared_prefix_share == 0


def test_evaluation_equals_a_plain_computation(configure) -> None:
    config = configure(evaluation=CONTRADICT[:7], eval_steps=3, max_steps=3, max_tokens_per_row=256)
    summary = train(config)
    _, (line,) = metrics(config)
    expected = plain_loss(trained_model(config), config, config.data.eval)
    assert line["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert line["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert summary.eval_loss == line["eval_loss"]


def test_evaluation_turns_dropout_off_and_training_has_it_on(configure) -> None:
    config = configure(evaluation=CONTRADICT, eval_steps=2, max_steps=2, method={"dropout": 0.5})
    train(config)
    steps, (line,) = metrics(config)
    expected = plain_loss(trained_model(config), config, config.data.eval)
    assert line["eval_loss"] == pytest.approx(expected, rel=1e-5)
    without = configure(max_steps=2)
    train(without, overwrite=True)
    # Step 1 is the base's loss whatever is dropped (B is 0), but its gradient is not.
    assert metrics(without)[0][0]["loss"] == pytest.approx(steps[0]["loss"], rel=1e-6)
    assert metrics(without)[0][0]["grad_norm"] != pytest.approx(steps[0]["grad_norm"], rel=1e-3)


def test_the_best_adapter_is_kept_where_the_last_is_worse(configure) -> None:
    config = configure(evaluation=CONTRADICT, eval_steps=4, max_steps=60)
    summary = train(config)
    _, evaluations = metrics(config)
    losses = [line["eval_loss"] for line in evaluations]
    assert min(losses) < losses[-1] - 0.1  # the case is what it is meant to be
    kept = plain_loss(trained_model(config), config, config.data.eval)
    assert kept == pytest.approx(min(losses), rel=1e-5)
    assert summary.eval_loss == pytest.approx(min(losses), rel=1e-6)


def test_early_stopping_stops_after_so_many_evaluations_without_a_better_one(configure) -> None:
    config = configure(
        evaluation=CONTRADICT, eval_steps=4, max_steps=400, early_stopping=2, save_steps=1000
    )
    summary = train(config)
    _, evaluations = metrics(config)
    losses = [line["eval_loss"] for line in evaluations]
    assert summary.steps == evaluations[-1]["step"] < 400
    assert losses.index(min(losses)) == len(losses) - 3
    kept = plain_loss(trained_model(config), config, config.data.eval)
    assert kept == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "factor"),
    [
        ("constant", lambda done: 1.0),
        ("linear", lambda done: done / 2 if done < 2 else (10 - done) / 8),
        ("constant_with_warmup", lambda done: min(1.0, done / 2)),
        (
            "cosine",
            lambda done: done / 2 if done < 2 else (1 + math.cos(math.pi * (done - 2) / 8)) / 2,
        ),
    ],
)
def test_schedulers_give_the_expected_learning_rate(configure, scheduler, factor) -> None:
    """Ten steps, of which a fifth warms up; a line's lr is that of its own step."""
    config = configure(max_steps=10, scheduler=scheduler, warmup_ratio=0.2, learning_rate=1e-3)
    train(config)
    found = [line["lr"] for line in metrics(config)[0]]
    assert found == pytest.approx([1e-3 * factor(done) for done in range(10)], abs=1e-9)


@pytest.mark.parametrize("limit", [0.01, 1000.0])
def test_gradients_are_clipped_to_max_grad_norm(configure, limit) -> None:
    """One step of SGD moves the weights by lr times the clipped norm; the log has the unclipped."""
    config = configure(max_steps=1, optimizer="sgd", learning_rate=0.5, max_grad_norm=limit)
    train(config)
    (line,) = metrics(config)[0]
    assert 0.01 < line["grad_norm"] < 1000
    # A starts random and its first gradient is 0, since B is 0: B alone moves.
    moved = [p for n, p in trained_model(config).named_parameters() if "lora_B" in n]
    norm = torch.cat([p.flatten() for p in moved]).norm().item()
    assert norm == pytest.approx(0.5 * min(limit, line["grad_norm"]), rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
def test_every_optimizer_learns(configure, optimizer) -> None:
    rate = 0.5 if optimizer == "sgd" else 0.02
    config = configure(max_steps=8, optimizer=optimizer, learning_rate=rate)
    train(config)
    losses = [line["loss"] for line in metrics(config)[0]]
    assert losses[-1] < losses[0]


def test_row_capacity_and_checkpointing_change_nothing_but_the_cost(configure) -> None:
    losses = []
    for settings in (
        {"max_tokens_per_row": 128},
        {"max_tokens_per_row": 4096},
        {"activation_checkpointing": True},
    ):
        config = configure(max_steps=5, optimizer="sgd", learning_rate=0.5, **settings)
        train(config, overwrite=True)
        losses.append([line["loss"] for line in metrics(config)[0]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_the_same_seed_gives_the_same_adapter_to_the_bit_and_another_does_not(configure) -> None:
    def adapter(seed) -> bytes:
        config = configure(max_steps=2, seed=seed, global_batch_size=4)
        train(config, overwrite=True)
        return (config.output.directory / "adapter" / "adapter_model.safetensors").read_bytes()

    known = adapter(3)
    assert adapter(3) == known
    assert adapter(4) != known


def test_tensorboard_receives_the_losses(configure) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = configure(evaluation=CONTRADICT, eval_steps=2, max_steps=4, report_to=["tensorboard"])
    train(config)
    events = reader.EventAccumulator(str(config.output.directory / "tensorboard"))
    events.Reload()
    steps, evaluations = metrics(config)
    written = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert [step for step, _ in written] == [1, 2, 3, 4]
    assert [value for _, value in written] == pytest.approx([x["loss"] for x in steps], rel=1e-4)
    written = [e.value for e in events.Scalars("eval/loss")]
    assert written == pytest.approx([line["eval_loss"] for line in evaluations], rel=1e-4)
    silent = configure(max_steps=1)
    train(silent, overwrite=True)
    assert not (silent.output.directory / "tensorboard").exists()


# -- the Trainer by itself -------------------------------------------------------------------------


class Spy(TrainerCallback):
    """A user's callback: sees every event, and stops the training where told to."""

    def __init__(self, stop_at=None) -> None:
        self.seen: list[str] = []
        self.losses: list[float] = []
        self.stop_at = stop_at

    def on_train_begin(self, *_, **__) -> None:
        self.seen.append("begin")

    def on_step_end(self, args, state, control, **_) -> None:
        self.seen.append(f"step {state.global_step}")
        if state.global_step == self.stop_at:
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])

    def on_evaluate(self, args, state, control, metrics=None, **_) -> None:
        self.seen.append("evaluate")
        assert metrics["eval_loss"] > 0

    def on_train_end(self, *_, **__) -> None:
        self.seen.append("end")


def make_trainer(base, tmp_path, world=None, callbacks=(), **settings) -> PlanTrainer:
    tokenizer = AutoTokenizer.from_pretrained(base)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LEARN))
    data = DataConfig(train=str(path), template="alpaca")
    examples = prepare(data, str(path), tokenizer).examples
    torch.manual_seed(0)
    loaded, reason = load_for_packing(ModelConfig(name_or_path=str(base)), torch.float32)
    assert reason is None
    model = add_lora(loaded, MethodConfig(r=8, alpha=16), "base", None)
    plan = Plan(examples.lengths, examples.supervised_counts, 5, 128, seed=0)
    training = Training(
        data=TrainingData(plan, examples, validation=examples),
        model=TrainingModel(Adapter(model), torch.float32),
        meter=Meter(step_cost(model), gemm_rate=1e12),
        world=world or World(),
    )
    arguments = TrainingArguments(
        **{
            "output_dir": str(tmp_path / "out"),
            "max_steps": 3,
            "learning_rate": 0.02,
            "logging_steps": 1,
            "save_strategy": "no",
            "eval_strategy": "steps",
            "eval_steps": 2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        | settings
    )
    return PlanTrainer(training, arguments, list(callbacks))


def test_the_device_of_a_rank_does_not_copy_the_base(base, tmp_path, monkeypatch) -> None:
    """Among several ranks Accelerate's is cpu:0, to which torch moves what is on cpu by a copy."""
    first, moved = make_trainer(base, tmp_path, max_steps=1), []
    monkeypatch.setattr(TrainingArguments, "device", torch.device("cpu:0"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *to, **_: moved.append(to) or self)
    trainer = PlanTrainer(first.training, first.args, [])
    trainer.train()
    assert trainer.state.global_step == 1
    assert not moved


def test_a_users_callback_is_called_and_can_stop(base, tmp_path) -> None:
    spy = Spy()
    make_trainer(base, tmp_path, callbacks=[spy]).train()
    # Every second step and, by Transformers' own rule, the last.
    assert spy.seen == ["begin", "step 1", "step 2", "evaluate", "step 3", "evaluate", "end"]
    assert len(spy.losses) == 3
    stopper = Spy(stop_at=1)
    trainer = make_trainer(base, tmp_path, callbacks=[stopper])
    trainer.train()
    assert trainer.state.global_step == 1
    assert stopper.seen[:2] == ["begin", "step 1"]
    assert stopper.seen[-1] == "end"


def test_a_step_has_the_gradient_of_the_mean_over_the_global_batch(base, tmp_path) -> None:
    trainer = make_trainer(base, tmp_path)
    data = trainer.training.data
    examples, step = data.examples, data.plan.step(0)
    loss = trainer.training_step(trainer.model, {})
    found = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.zero_grad()
    plain = trainer.model
    plain.set_attn_implementation("eager")
    total = torch.zeros(())
    for index in step.examples:
        tokens, supervised = map(torch.from_numpy, examples[int(index)])
        labels = torch.where(supervised, tokens.long(), -100)
        mean = plain(input_ids=tokens.long()[None], labels=labels[None]).loss
        total = total + mean * supervised.sum()
    (total / step.supervised_tokens).backward()
    assert loss.item() == pytest.approx(total.item() / step.supervised_tokens, rel=1e-5)
    for name, gradient in found.items():
        expected = plain.get_parameter(name).grad
        assert (gradient - expected).norm() <= 1e-4 * expected.norm() + 1e-7, name


def test_validation_leaves_the_model_in_the_mode_it_was_in(base, tmp_path) -> None:
    trainer = make_trainer(base, tmp_path)
    for training in (True, False):
        trainer.model.train(training)
        validation_loss(trainer.training)
        assert trainer.model.training is training


def test_a_gradient_that_is_not_finite_ends_the_run_with_a_line(base, tmp_path) -> None:
    trainer = make_trainer(base, tmp_path)
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(IntelFTError, match=r"gradient norm is (nan|inf) at step 1: lower"):
        trainer.train()


def test_a_loss_that_is_not_finite_ends_the_run_with_a_line(base, tmp_path) -> None:
    trainer = make_trainer(base, tmp_path)
    with torch.no_grad():
        trainer.model.get_base_model().lm_head.weight.fill_(math.nan)
    with pytest.raises(
        IntelFTError, match=r"the loss is nan at step 1: lower train\.learning_rate"
    ):
        trainer.train()


@pytest.mark.parametrize("loss_on", ["all", "completion"])
def test_eval_of_a_run_is_the_runs_own_loss(configure, tmp_path, loss_on) -> None:
    """Also from its adapter alone, with what intel_ft.json says; an option counts before both."""
    config = configure(evaluation=CONTRADICT, max_steps=1)
    data = config.data.model_copy(update={"loss_on": loss_on})
    run, held = config.output.directory, config.data.eval
    summary = train(config.model_copy(update={"data": data}))
    result = evaluate(run, held)
    assert result.loss == pytest.approx(summary.eval_loss, rel=0.02)
    assert result.loss_on == loss_on
    (run / "adapter").rename(tmp_path / "alone")
    assert evaluate(tmp_path / "alone", held).loss == result.loss
    other = "completion" if loss_on == "all" else "all"
    assert evaluate(tmp_path / "alone", held, loss_on=other).loss != result.loss


def test_a_base_that_was_moved_is_named_with_the_option(configure, base, tmp_path) -> None:
    config = configure(evaluation=CONTRADICT, max_steps=1)
    here = shutil.copytree(base, tmp_path / "here")
    model = config.model.model_copy(update={"name_or_path": str(here)})
    train(config.model_copy(update={"model": model}))
    run, held = config.output.directory, config.data.eval
    before = evaluate(run, held).loss
    moved = here.rename(tmp_path / "there")
    calls = (
        lambda: evaluate(run, held),
        lambda: merge(run, tmp_path / "merged"),
        lambda: write_samples(run, 1, 4),
    )
    for call in calls:
        with pytest.raises(UserError, match=rf"its base model {here} is not there: .*--base"):
            call()
    assert evaluate(run, held, base=moved).loss == before
    write_samples(run, 1, 4, base=str(moved))
    assert len((run / "samples.jsonl").read_text().splitlines()) == 1
    other = AutoModelForCausalLM.from_pretrained(moved)
    torch.nn.init.normal_(other.get_input_embeddings().weight)
    other.save_pretrained(moved)
    with pytest.raises(UserError, match="was not trained on"):
        evaluate(run, held, base=moved)


def test_no_clipping_is_a_norm_that_nothing_reaches(configure, tmp_path) -> None:
    """And the norm is still measured, so that one that is not finite ends the run."""
    losses = {}
    for norm in (0, 1e9):
        config = configure(max_steps=2, max_grad_norm=norm)
        train(config, overwrite=True)
        lines = (config.output.directory / "metrics.jsonl").read_text().splitlines()
        steps = [line for line in map(json.loads, lines) if "loss" in line]
        assert all(step["grad_norm"] > 0 for step in steps)
        losses[norm] = [step["loss"] for step in steps]
    assert losses[0] == losses[1e9]


def test_targets_by_a_regular_expression(configure) -> None:
    counts = [
        train(configure(max_steps=1, method={"target_modules": targets}), overwrite=True)
        for targets in (r"model\.layers\.[\d]+\.self_attn\.(q|v)_proj", ["q_proj", "v_proj"])
    ]
    assert counts[0].trained_parameters == counts[1].trained_parameters
    assert counts[0].train_loss == counts[1].train_loss
