"""fp16 IRs of model families compute what torch computes, at once and token by token.

int8 exports of these families may answer with other greedy tokens than torch: on random weights the
most likely tokens are almost equal, and quantization decides between them. In fp16 there is no such
excuse. Windows are 16 tokens, shorter than the 100 that are compared.
"""

from importlib.util import find_spec

import pytest
from support.families import architectures

if find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from intel_ft.errors import IntelFTError
from intel_ft.export import lifted
from intel_ft.export.convert import convert
from intel_ft.export.export import require_packages
from intel_ft.export.lifted import check_lifted

STATED = ("Mistral", "OLMo 2", "Phi 3, 4", "StableLM", "gpt-oss")
LIFTED = ("EXAONE 4", "GLM 4", "Gemma 3, text")


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    require_packages()


@pytest.mark.parametrize("name", [*STATED, *LIFTED])
def test_an_fp16_ir_computes_what_torch_computes(name, tmp_path) -> None:
    base, ir = tmp_path / "base", tmp_path / "ir"
    architectures.write_model(*architectures.FAMILIES[name], base)
    convert(base, ir, str(base), trust_remote_code=False)
    assert architectures.ir_error(base, ir) < 0.01  # a wrong mask is off by 0.1 and more
    if name == LIFTED[-1]:
        check_lifted(base, ir, "float32", trust_remote_code=False)
        _other_weights(name, base)
        with pytest.raises(IntelFTError, match=r"off by 1\.\d+"):
            check_lifted(base, ir, "float32", trust_remote_code=False)


def _other_weights(name: str, folder) -> None:
    """Write another model of the family, so that the IR in its folder is wrong."""
    model_type, values = architectures.FAMILIES[name]
    architectures.write_model(model_type, values | {"initializer_range": 0.1}, folder, seed=1)


def test_the_limit_is_as_stated_again_after_an_export(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2"}')
    config = lifted._export_config("gemma2", lifted.task_of(tmp_path))
    stated = config.MAX_TRANSFORMERS_VERSION
    with lifted.lifted_limit(tmp_path):
        assert config.MAX_TRANSFORMERS_VERSION is None
    assert config.MAX_TRANSFORMERS_VERSION == stated == "5.0"
