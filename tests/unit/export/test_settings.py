"""Settings, recipes, limits and the ladder: their checks, and the options that NNCF gets."""

import math
from importlib.util import find_spec

import pytest

if find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from optimum.intel.openvino.configuration import get_default_quantization_config

from intel_ft.errors import UserError
from intel_ft.export.gate import Limits, parse_share
from intel_ft.export.ladder import candidates
from intel_ft.export.measure import Quality
from intel_ft.export.quantize import _config
from intel_ft.export.recipe import find_recipe, options_for, public_id
from intel_ft.layers.compressed import bytes_per_weight
from intel_ft.quantization import FOUR_BIT, Settings, base_settings, for_device, read_settings


def test_file_and_pairs(tmp_path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("group_size: 64\nawq: true\n")
    settings = read_settings(file, ["group_size=32", "kv_cache=u8", "ignored_layers=[lm_head]"])
    assert (settings.group_size, settings.awq, settings.kv_cache) == (32, True, "u8")
    assert settings.ignored_layers == ["lm_head"]
    assert settings.model_fields_set == {"group_size", "awq", "kv_cache", "ignored_layers"}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("grup_size=64", ["grup_size", "did you mean group_size?"]),
        ("ratio=1.5", ["--set", "ratio=1.5", "less than or equal to 1"]),
        ("group_size=0", ["group_size must be above 0"]),
        ("kv_cache=u2", ["kv_cache=u2", "'u8'"]),
        ("awq", ["--set 'awq'", "KEY=VALUE"]),
    ],
)
def test_a_wrong_setting_is_one_line(pair, words) -> None:
    with pytest.raises(UserError) as caught:
        read_settings(None, [pair])
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_settings_file_that_is_none(tmp_path) -> None:
    with pytest.raises(UserError, match="absent"):
        read_settings(tmp_path / "absent.yaml", [])
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected KEY: VALUE"):
        read_settings(tmp_path / "list.yaml", [])


@pytest.mark.parametrize(
    "base",
    [
        "meta-llama/Meta-Llama-3.1-8B-Instruct",
        "microsoft/Phi-3.5-mini-instruct",
        "mistralai/Mistral-7B-v0.1",
        "/data/models/TinyLlama-1.1B-Chat-v1.0",
    ],
)
def test_the_base_recipe_is_what_optimum_has(base) -> None:
    recipe = find_recipe([base], "int4", Settings())
    tuned = get_default_quantization_config(base, weight_format="int4")
    assert recipe.used and tuned is not None
    assert recipe.id == public_id(base) and recipe.id in recipe.why and "/data" not in recipe.why
    options = options_for("int4", Settings(), recipe, calibrated=True)
    for key in ("bits", "sym", "group_size", "ratio", "scale_estimation"):
        if key in tuned:
            assert options[key] == tuned[key], key
    _config(options, Settings())  # Optimum-Intel takes it
    # The user's values override the recipe, and the user may turn it off.
    user_settings = Settings(group_size=16)
    assert options_for("int4", user_settings, recipe, calibrated=True)["group_size"] == 16
    none = find_recipe([base], "int4", Settings(recipe="none"))
    assert not none.used and "recipe=none" in none.why
    assert options_for("int4", Settings(recipe="none"), none, False)["group_size"] == 128


def test_a_base_without_recipe_says_so() -> None:
    recipe = find_recipe(["example/unknown", ""], "int4", Settings())
    assert (recipe.id, recipe.used) == (None, False)
    assert "no tuned recipe for example/unknown" in recipe.why
    assert options_for("int4", Settings(), recipe, calibrated=False) == {
        "bits": 4,
        "dtype": "int4",
        "group_size": 128,
        "group_size_fallback": "adjust",
        "ratio": 1.0,
        "sym": False,
    }


def test_without_data_a_recipe_loses_what_needs_it() -> None:
    recipe = find_recipe(["microsoft/phi-2"], "int4", Settings())
    assert recipe.options["scale_estimation"] and "dataset" not in recipe.options
    assert "scale_estimation" not in options_for("int4", Settings(), recipe, calibrated=False)
    with pytest.raises(UserError, match="gptq needs calibration data"):
        options_for("int4", Settings(gptq=True), recipe, calibrated=False)


def test_a_recipe_of_several_stages_is_taken_whole_or_not() -> None:
    recipe = find_recipe(["openai/gpt-oss-20b"], "int4", Settings())
    options = options_for("int4", Settings(), recipe, calibrated=False)
    assert type(_config(options, Settings())).__name__ == "_GPTOSSQuantizationConfig"
    with pytest.raises(UserError, match=r"several stages.*ratio.*recipe=none"):
        options_for("int4", Settings(ratio=0.5), recipe, calibrated=False)


def test_fp16_takes_no_settings() -> None:
    recipe = find_recipe(["x"], "fp16", Settings())
    assert options_for("fp16", Settings(kv_cache="u8"), recipe, True) == {}
    with pytest.raises(UserError, match=r"fp16 .*ratio"):
        options_for("fp16", Settings(ratio=0.5), recipe, True)


def test_every_setting_reaches_nncf() -> None:
    user_settings = Settings(
        group_size=32,
        ratio=0.7,
        sym=True,
        all_layers=True,
        backup_precision="int8_sym",
        sensitivity_metric="max_activation_variance",
        awq=True,
        gptq=True,
        ignored_layers=["lm_head"],
        dynamic_group_size=64,
        samples=7,
    )
    recipe = find_recipe(["x"], "int4", user_settings)
    config = _config(options_for("int4", user_settings, recipe, calibrated=True), user_settings)
    nncf_options = config.to_nncf_dict()
    assert (nncf_options["mode"].value, nncf_options["group_size"], nncf_options["ratio"]) == (
        "int4_sym",
        32,
        0.7,
    )
    assert (
        nncf_options["all_layers"]
        and nncf_options["awq"]
        and nncf_options["gptq"]
        and nncf_options["subset_size"] == 7
    )
    assert nncf_options["backup_mode"].value == "int8_sym"
    assert nncf_options["sensitivity_metric"].value == "max_activation_variance"
    assert nncf_options["ignored_scope"].patterns == ["lm_head"]
    assert config.dq_group_size == 64
    both = _config({"bits": 4, "dtype": "int4"}, Settings(activations="int8"))
    assert type(both).__name__ == "OVMixedQuantizationConfig"


def test_npu_wants_symmetric_channels() -> None:
    npu = for_device(Settings(samples=3), "NPU")
    assert (npu.sym, npu.group_size, npu.recipe, npu.samples) == (True, -1, "none", 3)
    assert for_device(Settings(group_size=128), "NPU").group_size == 128
    assert for_device(Settings(), "GPU") == Settings()


def test_the_ladder_goes_up_and_keeps_the_users_settings() -> None:
    names = [candidate.name for candidate in candidates("auto", Settings())]
    assert names[0] == "int4" and names[-2:] == ["int8", "fp16"]
    ladder = candidates("auto", Settings(sym=True, group_size=32, kv_cache="u8"))
    # One group size leaves one rung of those that differ in nothing else.
    four = [candidate for candidate in ladder if candidate.format in FOUR_BIT]
    assert {candidate.settings.group_size for candidate in four} == {32}
    assert [c.settings.ratio for c in four] == [None, 0.8, 0.6, 0.4]
    assert all(c.settings.kv_cache == "u8" for c in ladder)
    assert [c.settings.sym for c in ladder[-2:]] == [True, None]
    only = candidates("nf4", Settings(sym=True))
    assert [(c.name, c.settings.sym) for c in only] == [("nf4", True)]


def test_recovery_is_tried_between_int4_and_larger_candidates() -> None:
    ladder = candidates("auto", Settings(group_size=64), recover=True)
    assert [c.name for c in ladder[:4]] == [
        "int4-all-recovered",
        "int4",
        "int4-recovered",
        "int4-r80",
    ]
    whole, plain, recovered = ladder[:3]
    assert (whole.recover, plain.recover, recovered.recover) == (True, False, True)
    assert whole.settings.all_layers and not recovered.settings.all_layers
    assert [c.settings.group_size for c in ladder[:3]] == [64] * 3
    assert recovered.settings.awq is False and plain.settings.awq is None
    (only,) = candidates("int4", Settings(), recover=True)
    assert (only.name, only.recover) == ("int4-recovered", True)


def test_settings_of_an_int4_base() -> None:
    settings = base_settings({"group_size": 64, "sym": True, "ratio": 0.8})
    assert (settings.group_size, settings.sym, settings.ratio) == (64, True, 0.8)
    options = options_for("int4", settings, find_recipe(["x"], "int4", settings), True)
    assert options["quant_method"] == "default" and options["scale_estimation"]
    tuned = base_settings({})
    recipe = find_recipe(["microsoft/Phi-3.5-mini-instruct"], "int4", tuned)
    assert recipe.options["quant_method"] == "awq"
    assert options_for("int4", tuned, recipe, True)["quant_method"] == "default"
    for values, part in (
        ({"groupsize": 64}, r"model.quantization: .*group_size"),
        ({"awq": True}, "awq cannot be used with int4 weights: it moves scales"),
        ({"lora_correction": True}, "lora_correction cannot be used"),
        ({"activations": "int8"}, "activations cannot be used"),
        ({"recover_steps": 3}, "recover_steps cannot be used"),
        ({"ratio": 2}, "ratio=2"),
        ({"ratio": 0}, "ratio=0: must be greater than 0"),
        ({"format": "nf4"}, "format=nf4: must be int4 or int8"),
    ):
        with pytest.raises(UserError, match=part):
            base_settings(values)


def test_bytes_per_weight_of_an_ir() -> None:
    assert bytes_per_weight({}) == (4 + 24 / 128) / 8
    assert bytes_per_weight({"group_size": 32}) == (4 + 24 / 32) / 8
    assert bytes_per_weight({"group_size": -1, "ratio": 0.5}) == 0.75
    assert bytes_per_weight({"format": "int8"}) == 1


def test_shares_and_limits() -> None:
    assert parse_share("1%", "--x") == parse_share("0.01", "--x") == pytest.approx(0.01)
    assert parse_share("0.05 %", "--x") == pytest.approx(0.0005)
    for wrong in ("one", "-1%", "nan", ""):
        with pytest.raises(UserError, match="--x"):
            parse_share(wrong, "--x")
    assert parse_share("100%", "--x") == 1 and parse_share("150 %", "--x") == 1.5
    with pytest.raises(UserError, match="would be 100 %: write 1% or 100%"):
        parse_share("1", "--x")
    with pytest.raises(UserError, match=r"write 2\.5%$"):
        parse_share("2.5", "--x")

    def quality(increase: float, agreement: float) -> Quality:
        return Quality(4.0, increase, 0.001, 0.0, agreement, None, None, None, None)

    limits = Limits(0.01, 0.98)
    assert limits.why_rejected(quality(0.0083, 0.99)) is None
    passed = "passed (limit perplexity +1.00%, top-1 agreement 98.00%)"
    assert limits.verdict(quality(0.0083, 0.99)) == passed
    assert limits.verdict(quality(0.011, 0.99)).startswith("rejected: perplexity +1.10%")
    assert "+1.10% ± 0.10% (limit +1.00%)" in str(limits.why_rejected(quality(0.011, 0.99)))
    assert "larger validation set" in str(
        limits.why_rejected(quality(0.009, 0.99))
    )  # not yet proven
    assert "0.9700" in str(limits.why_rejected(quality(0.0, 0.97)))
    assert limits.why_rejected(quality(math.nan, 0.99)) and limits.why_rejected(
        quality(0.0, math.nan)
    )
    assert Limits().why_rejected(quality(9.0, 0.0)) is None and not Limits().is_set
