"""The configuration: how a YAML file and overrides are read, and the message for each mistake."""

import ast
import itertools
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from intel_ft import config_method, config_sections
from intel_ft.config import Config, build, load
from intel_ft.errors import UserError

MINIMAL = "model: {name_or_path: m}\ndata: {train: t.jsonl}\noutput: {directory: out}\n"


@pytest.fixture
def read(tmp_path):
    def read(text=MINIMAL, *overrides) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, list(overrides))

    return read


_SECTIONS = ("model.", "backend.", "train.")


def refused(read, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["name=full", "r=8"], "method: r configures an adapter"),
        (["name=full", "use_dora=true"], "use_dora configures an adapter"),
        (["name=distill"], "needs a teacher"),
        (["name=distill", "teacher=x", "student=full", "alpha=1"], "alpha configures an adapter"),
        (["teacher=x"], "teacher requires name=distill, but name is lora"),
        (["temperature=3"], "temperature requires name=distill"),
        (["use_dora=true", "init=pissa"], "init=pissa cannot be combined with use_dora"),
        (["name=distill", "teacher=base", "init=olora"], "init=olora changes the base"),
        (["name=qlora", "use_dora=true"], "method.use_dora requires unmodified base weights"),
        (["use_dora=true", "model.base_dtype=int8"], "combined with qlora, model.base_dtype"),
        (["use_dora=true", "backend.prepack=true"], "or backend.prepack=true"),
        (["name=full", "model.base_dtype=nf4"], "model.base_dtype applies to frozen weights"),
        (["name=full", "model.base_dtype=int4"], "model.base_dtype applies to frozen weights"),
        (["init=olora", "model.base_dtype=int4"], "method.init=olora changes the base weights"),
        (
            ["modules_to_save=[norm]", "model.base_dtype=int4"],
            "method.modules_to_save trains copies of base weights",
        ),
        (
            ["backend.name=cuda", "model.base_dtype=int4"],
            "base_dtype=int4 requires backend.name=cpu",
        ),
        (["model.quantization={sym: true}"], "applies to model.base_dtype=int4 only"),
        (["init=loftq"], "corrects the rounding of model.base_dtype=int4: set that as well"),
        (["name=full", "backend.prepack=true"], "backend.prepack applies to frozen weights"),
        (["name=full", "backend.share_base=cache"], "backend.share_base applies to frozen weights"),
        (["backend.name=cuda", "backend.share_base=cache"], "share_base=cache requires"),
        (["backend.name=ipex", "backend.share_base=cache"], "backend.name=cpu, not ipex"),
        (["lora_plus_ratio=0.5"], "method.lora_plus_ratio=0.5"),
        (["backend.compile=true", "backend.prepack=true"], "or backend.prepack=true"),
        (["backend.compile=true", "name=qlora"], "backend.compile=true requires"),
        (
            ["backend.name=ipex", "name=qlora"],
            "backend.name=ipex only supports LoRA on a bf16 base",
        ),
        (["backend.name=ipex", "model.base_dtype=int8"], "cannot use qlora, model.base_dtype"),
        (["backend.name=ipex", "model.dtype=float32"], "model.dtype=float32"),
        (["backend.name=ipex", "name=full"], "cannot train all weights"),
        (["backend.name=ipex", "use_dora=true"], "or use method.use_dora"),
        (["backend.name=ipex", "backend.compile=true"], "requires backend.name=cpu"),
        (["backend.shard=true", "name=distill", "teacher=x"], "name=lora and full, not distill"),
        (["backend.shard=true", "name=qlora"], "name=lora and full, not qlora"),
        (["backend.shard=true", "init=pissa"], "shard does not support method.init"),
        (["backend.shard=true", "model.base_dtype=int8"], "not support model.base_dtype"),
        (["backend.shard=true", "backend.name=cuda"], "requires backend.name=cpu, not cuda"),
        (["backend.shard=true", "backend.prepack=true"], "with backend.prepack=true"),
        (["backend.shard=true", "model.add_tokens=[x]"], "not support model.add_tokens"),
        (["backend.shard=true", "train.optimizer=adafactor"], "train.optimizer=adafactor"),
    ],
)
def test_methods_that_make_no_sense_are_one_line(read, overrides, part) -> None:
    keys = [key if key.startswith(_SECTIONS) else f"method.{key}" for key in overrides]
    assert part in refused(read, MINIMAL, *keys)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["loss=ipo"], "method: loss requires name=preference, but name is lora"),
        (["name=distill", "teacher=x", "beta=0.3"], "beta requires name=preference"),
        (["student=full"], "student requires name=distill or preference"),
        (["name=preference", "teacher=x"], "teacher requires name=distill"),
        (["name=preference", "student=full", "r=8"], "r configures an adapter"),
        (["name=preference", "loss=orpo", "sft_weight=1"], "sft_weight is for loss=dpo or ipo"),
        (["name=preference", "gamma=1"], "gamma is for loss=simpo, but loss is dpo"),
        (["name=preference", "loss=kto", "label_smoothing=0.1"], "label_smoothing is for loss="),
        (["name=preference", "desirable_weight=2"], "desirable_weight is for loss=kto"),
        (["name=preference", "beta=0"], "method.beta=0"),
        (["name=preference", "loss=grpo"], "method.loss=grpo: must be"),
        (["name=preference", "data.on_long=truncate"], "not the one that was judged"),
        (["name=preference", "data.loss_on=all"], "answers are compared"),
        (["name=preference", "data.format=alpaca"], "data.format=alpaca cannot be used"),
        (["name=preference", "data.train=[{path: a}, {path: b}]"], "reads one source"),
        (["name=preference", "train.max_tokens_per_row=1024"], "must hold a pair"),
        (["name=preference", "train.best_metric=accuracy"], "needs data.eval"),
        (["train.best_metric=accuracy"], "needs method.name=preference or reward, not lora"),
        (["name=preference", "data.weight_column=w"], "data.weight_column cannot be used"),
        (
            ["data.weight_column=w", "data.streaming=true", "train.max_steps=1"],
            "set data.streaming=false",
        ),
        (["name=reward", "beta=0.2"], "beta requires name=preference, but name is reward"),
        (["name=reward", "model.base_dtype=int4"], "int4 cannot be used with method.name=reward"),
        (["name=reward", "model.add_tokens=[x]"], "model.add_tokens cannot be used"),
        (["name=reward", "model.adapter=x"], "set model.adapter_mode=merge"),
        (["name=reward", "backend.name=ipex"], "cannot train all weights or a reward model"),
        (["name=reward", "data.loss_on=all"], "cannot be used with method.name=reward"),
    ],
)
def test_preferences_that_make_no_sense_are_one_line(read, overrides, part) -> None:
    keys = [key if "." in key.partition("=")[0] else f"method.{key}" for key in overrides]
    assert part in refused(read, MINIMAL, *keys)


def test_a_preference_is_written_and_read_back(read) -> None:
    config = read(MINIMAL, "method.name=preference", "method.loss=kto", "method.student=full")
    assert build(yaml.safe_load(config.to_yaml()), "again") == config
    assert (config.method.compares, config.method.trains_all) == ("judged", True)


def test_a_method_is_written_and_read_back(read) -> None:
    config = read(MINIMAL, "method.name=distill", "method.teacher=x", "method.student=full")
    assert build(yaml.safe_load(config.to_yaml()), "again") == config
    assert read(MINIMAL, "method.name=qlora").base_dtype == "nf4"
    assert read(MINIMAL, "method.name=qlora", "model.base_dtype=int8").base_dtype == "int8"


def test_a_minimal_file_gets_the_documented_defaults(read) -> None:
    config = read()
    assert config.model.name_or_path == "m"
    assert config.output.directory == Path("out")
    assert (config.method.r, config.method.alpha, config.method.dropout) == (16, 32.0, 0.0)
    assert config.model.trust_remote_code is False
    assert config.model.allow_pickle is False
    assert config.data.loss_on == "completion"
    assert config.data.on_long == "error"
    assert config.train.max_tokens_per_row == "auto"
    assert config.backend.threads == "auto"


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        (
            "train.learnin_rate=1",
            "train.learnin_rate (did you mean train.learning_rate?)",
        ),
        ("train.max_length=64", "unknown key train.max_length (did you mean data.max_length?)"),
        ("trian.seed=1", "unknown key trian (did you mean train?)"),
        ("method.zzz=1", "unknown key method.zzz (valid keys: name, r, alpha,"),
        ("zzz.seed=1", "unknown key zzz (valid keys: model, data, method, train, backend, output)"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(read, override, hint) -> None:
    assert hint in refused(read, MINIMAL, override)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.learning_rate=-1", "train.learning_rate=-1: must be greater than 0"),
        (
            "train.learning_rate=11",
            "train.learning_rate=11: must be less than or equal",
        ),
        ("train.global_batch_size=0", "train.global_batch_size=0: must be greater than"),
        ("train.max_steps=0", "train.max_steps=0: "),
        ("train.max_steps=[1]", "train.max_steps: must be a valid integer, not a list"),
        ("train.seed=-1", "train.seed=-1: "),
        ("train.seed=4294967296", "train.seed=4294967296: "),
        (
            "train.warmup_ratio=1.5",
            "train.warmup_ratio=1.5: must be less than 1 (write 1.5 % as 0.015)",
        ),
        ("data.eval_fraction=5", "data.eval_fraction=5: must be less than 1 (write 5 % as 0.05)"),
        ("method.dropout=5%", "unable to parse string as a number (write 5 % as 0.05)"),
        ("train.scheduler=cosin", "train.scheduler=cosin: must be 'linear', 'cosine'"),
        ("train.optimizer=adam", "train.optimizer=adam: "),
        ("train.max_tokens_per_row=7", "train: max_tokens_per_row must be at least 8"),
        ("train.max_tokens_per_row=many", "train.max_tokens_per_row=many: "),
        ("train.epochs=0", "train.epochs=0: "),
        ("method.r=0", "method.r=0: "),
        ("method.dropout=1", "method.dropout=1: "),
        ("method.name=prefix", "method.name=prefix: "),
        ("data.max_length=7", "data.max_length=7: "),
        ("data.eval_fraction=1", "data.eval_fraction=1: "),
        ("data.format=parquet", "data.format=parquet: "),
        ("data.template=", "data.template=: "),
        ("model.dtype=int4", "model.dtype=int4: "),
        ("model.name_or_path=", "model.name_or_path=: "),
        ("method.target_modules=q_proj", "method.target_modules=q_proj: write all-linear, "),
        ("method.target_modules=(q", "method.target_modules=(q: not a regular expression"),
    ],
)
def test_a_value_out_of_range_is_one_line_with_key_and_value(read, override, problem) -> None:
    line = refused(read, MINIMAL, override)
    assert "config.yaml: " in line
    assert problem in line


def test_every_problem_is_listed_at_once(read) -> None:
    line = refused(read, MINIMAL, "train.seed=-1", "method.r=0", "data.form=x")
    assert "train.seed=-1" in line
    assert "method.r=0" in line
    assert "did you mean data.format?" in line


@pytest.mark.parametrize("missing", ["model.name_or_path", "data.train", "output.directory"])
def test_what_has_no_default_is_required(read, missing) -> None:
    section, key = missing.split(".")
    values = yaml.safe_load(MINIMAL)
    del values[section][key]
    assert f"{missing} is required" in refused(read, yaml.safe_dump(values))
    del values[section]
    assert f"{missing} is required" in refused(read, yaml.safe_dump(values))


def test_a_section_given_as_one_value_is_told_its_form(read) -> None:
    assert "method=full: must be a section, such as method: {name: full}" in refused(
        read, "method: full"
    )
    assert "train: must be a section (valid keys: epochs" in refused(read, "train: [5]")


def test_a_row_must_hold_the_longest_example(read) -> None:
    line = refused(read, MINIMAL, "train.max_tokens_per_row=512")
    assert "train.max_tokens_per_row (512) must be at least data.max_length (1024)" in line
    read(MINIMAL, "train.max_tokens_per_row=512", "data.max_length=512")


def test_early_stopping_needs_something_to_evaluate_on(read) -> None:
    line = refused(read, MINIMAL, "train.early_stopping=2")
    assert "train.early_stopping needs data.eval or data.eval_fraction" in line
    read(MINIMAL, "train.early_stopping=2", "data.eval_fraction=0.1")
    read(MINIMAL, "train.early_stopping=2", "data.eval=e.jsonl")


def test_overrides_go_before_the_file_and_the_last_one_wins(read) -> None:
    config = read(MINIMAL + "train: {seed: 1}\n", "train.seed=2", "train.seed=3", "method.r=8")
    assert config.train.seed == 3
    assert config.method.r == 8


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E-3", 1e-3),
        ("2.0e-4", 2e-4),
        ("0.001", 0.001),
        ("1", 1.0),
    ],
)
def test_numbers_as_people_write_them(read, text, value) -> None:
    """YAML 1.1 reads 2e-4 as a string; a user means a number."""
    assert read(MINIMAL, f"train.learning_rate={text}").train.learning_rate == value
    assert read(MINIMAL + f"train: {{learning_rate: {text}}}\n").train.learning_rate == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("all-linear", "all-linear"),
        (r".*\.[\d]+\.(q|v)_proj", r".*\.[\d]+\.(q|v)_proj"),
    ],
)
def test_an_override_is_yaml(read, text, value) -> None:
    assert read(MINIMAL, f"method.target_modules={text}").method.target_modules == value


def test_an_override_may_hold_an_equals_sign_or_be_null(read) -> None:
    config = read(MINIMAL, "data.system_prompt=a=b", "train.max_steps=null")
    assert config.data.system_prompt == "a=b"
    assert config.train.max_steps is None


@pytest.mark.parametrize("override", ["seed=1", "train.seed", "train.=1", ".seed=1", "=", ""])
def test_an_override_of_another_shape_is_refused(read, override) -> None:
    line = refused(read, MINIMAL, override)
    assert line == f"override {override!r}: write it as section.key=value"


def test_an_override_that_is_not_yaml_is_refused(read) -> None:
    assert refused(read, MINIMAL, "train.seed=[1").startswith("override 'train.seed=[1': ")


def test_an_override_into_something_that_is_no_section_is_refused(read) -> None:
    line = refused(read, MINIMAL + "train: 3\n", "train.seed=1")
    assert line == "override 'train.seed=1': train is not a section"


@pytest.mark.parametrize(
    "text",
    ["You are agent #7 of the team", "Role: be brief", "010", "true", "1e3", "{a", "'quoted' #1"],
)
def test_an_override_of_a_text_field_is_the_text_as_given(read, text) -> None:
    assert read(MINIMAL, f"data.system_prompt={text}").data.system_prompt == text
    assert read(MINIMAL, f"model.revision={text}").model.revision == text
    assert read(MINIMAL, f"output.directory=runs/{text}").output.directory == Path("runs", text)
    assert read(MINIMAL, "data.system_prompt=null").data.system_prompt is None
    assert read(MINIMAL, "model.revision=").model.revision is None


@pytest.mark.parametrize("text", ["010", "1:30"])
def test_a_number_with_two_meanings_is_refused(read, text) -> None:
    line = refused(read, MINIMAL, f"train.max_steps={text}")
    assert f"override 'train.max_steps={text}': {text} is read as" in line
    assert "line 4: " in refused(read, MINIMAL + f"train: {{max_steps: {text}}}\n")
    assert read(MINIMAL, "train.max_steps=10", "train.seed=0").train.max_steps == 10


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "train: {seed: 1}\ntrain: {seed: 2}\n",
            "train is set twice, in line 4 and again in line 5",
        ),
        ("train:\n  seed: 1\n  epochs: 2\n  seed: 3\n", "seed is set twice, in line 5 and again"),
        ("train: {seed: 1, seed: 1}\n", "seed is set twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(read, text, line) -> None:
    assert line in refused(read, MINIMAL + text)


def test_a_merged_mapping_may_be_overridden(read) -> None:
    shared = "x: &x {seed: 1, epochs: 2}\n"
    line = refused(read, MINIMAL + shared + "train: {<<: *x, seed: 3}\n")
    assert line.endswith("unknown key x (valid keys: model, data, method, train, backend, output)")
    text = MINIMAL.replace("model: {", "model: &m {") + "train: {seed: 1}\n"
    assert read(text.replace("output: {", "output: {")).train.seed == 1


def test_home_and_variables_are_expanded_in_every_path(read, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_HERE", "/data")
    config = read(
        MINIMAL,
        "model.name_or_path=~/m",
        "data.train=${DATA_HERE}/t.jsonl",
        "data.eval=$DATA_HERE/e.jsonl",
        "method.name=distill",
        "method.teacher=~/teacher",
        "output.directory=~/runs/${DATA_HERE}",
    )
    assert config.model.name_or_path == str(tmp_path / "m")
    assert (config.data.train, config.data.eval) == ("/data/t.jsonl", "/data/e.jsonl")
    assert config.method.teacher == str(tmp_path / "teacher")
    assert config.output.directory == tmp_path / "runs/data"
    for key in ("model.name_or_path", "data.train", "data.eval", "output.directory"):
        line = refused(read, MINIMAL, key + "=${NOT_SET_HERE}/x")
        assert (
            f"{key}=${{NOT_SET_HERE}}/x: the environment variable NOT_SET_HERE is not set" in line
        )
    kept = tmp_path / "a $b"
    kept.mkdir()
    assert read(MINIMAL, f"output.directory={kept}").output.directory == kept


@pytest.mark.parametrize("key", ["train.max_steps", "train.learning_rate", "method.r"])
def test_a_switch_is_no_number(read, key) -> None:
    """Python takes true for 1."""
    for value in ("true", "yes", "off"):
        assert f"{key}={value in ('true', 'yes')}: must not be true or" in refused(
            read, MINIMAL, f"{key}={value}"
        )
    assert read(MINIMAL, "method.use_dora=yes").method.use_dora


@pytest.mark.parametrize("key", ["method.alpha", "train.epochs", "train.weight_decay"])
def test_a_number_is_finite(read, key) -> None:
    for value in (".inf", ".nan"):
        assert f"{key}={value[1:]}: must be a finite" in refused(read, MINIMAL, f"{key}={value}")


def test_no_clipping_can_be_said(read) -> None:
    assert read(MINIMAL, "train.max_grad_norm=0").train.max_grad_norm == 0
    assert "max_grad_norm=-1" in refused(read, MINIMAL, "train.max_grad_norm=-1")


def test_a_missing_file_is_named(tmp_path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(UserError, match=re.escape(f"{path}: no such config file")):
        load(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty: write sections"),
        (b"# model\n", "is empty: write sections"),
        (b"model: [", r"not valid YAML: column 9: a value is missing before the end"),
        (
            b"a: 1\nb: [1, 2\n",
            r"line 3, column 1: expected ',' or '\]', .* \(in the \[ \] of line 2",
        ),
        (b"model:\n\tname: x\n", "line 2, column 1: a tab: indent with spaces$"),
        (b"a: b: c\n", r"line 1, column 5: a second ': ' in one line"),
        (b"a: @b\n", "line 1, column 4: a value cannot start with @: put it in quotes$"),
        (b'a: b\nc: "d\n', "line 3, column 1: the closing quote is missing .*of line 2"),
        (b"a:\n  b: c\n d: e\n", "line 3, column 2: a line is indented unlike the ones before it"),
        (b"a: 1\nb: \x07\n", r"line 2: the character U\+0007 is not allowed"),
        (b"train:\n  seed: 1\n seed: 2\n", "not valid YAML: .*line 3"),
        (b"- a\n- b\n", "expected sections"),
        (b"model: caf\xe9", "cannot be read as UTF-8 text"),
        (b"model: 3\ndata: {train: t}\noutput: {directory: o}", "model=3: "),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, content, problem) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert re.search(problem, line)
    assert "\n" not in line


def test_a_folder_instead_of_a_file_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


@example({}, "\x85")
@given(
    st.fixed_dictionaries(
        {
            "learning_rate": st.floats(1e-12, 10),
            "seed": st.integers(0, 2**32 - 1),
            "max_steps": st.none() | st.integers(1, 10**9),
            "max_tokens_per_row": st.just("auto") | st.integers(2048, 10**6),
            "activation_checkpointing": st.booleans(),
            "report_to": st.sampled_from([[], ["tensorboard"]]),
        }
    ),
    st.text(max_size=30).filter(lambda text: "\x00" not in text),
)
def test_what_to_yaml_writes_loads_to_an_equal_value(tmp_path_factory, train, prompt) -> None:
    config = build(
        {
            "model": {"name_or_path": "m"},
            "data": {"train": "t", "system_prompt": prompt},
            "method": {"target_modules": ["q_proj"]},
            "train": train,
            "output": {"directory": "a/ü b"},
        },
        "test",
    )
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8", newline="")
    assert load(path) == config


def test_a_section_with_everything_commented_out_is_its_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    sections = ["model: {name_or_path: a}", "data: {train: b}", "output: {directory: c}", "train:"]
    path.write_text("\n".join([*sections, "  # epochs: 3", ""]))
    assert load(path).train.epochs == 1
    assert load(path, ["train.epochs=2"]).train.epochs == 2


def test_every_field_is_documented_in_a_sentence():
    """By the string below it, which a docs generator reads."""
    files = [Path(module.__file__) for module in (config_sections, config_method)]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    sections = [n for tree in trees for n in tree.body if isinstance(n, ast.ClassDef)]
    documented = {}
    for section in sections:
        for field, following in itertools.pairwise(section.body):
            if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
                documented[section.name, ast.unparse(field.target)] = ast.literal_eval(
                    following.value
                )
    fields = {
        (section.annotation.__name__, name)
        for section in Config.model_fields.values()
        for name in section.annotation.model_fields
    }
    assert set(documented) == fields
    assert all(text[0].isupper() for text in documented.values())
    assert all(text.endswith(".") for text in documented.values())


@pytest.mark.parametrize(
    "text", ["base_model: x\nadapter: lora\n", "model_name_or_path: x\noutput_dir: y\n"]
)
def test_a_config_of_another_trainer_is_referred_to_init(tmp_path, text) -> None:
    path = tmp_path / "ax.yml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert f"intel-ft init --from {path} -o run.yaml" in str(caught.value)
    assert "unknown key" not in str(caught.value)
