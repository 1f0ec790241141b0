"""`intel-ft validate`."""

from intel_ft.cli.options import ConfigFile, Json, Overrides, show


def run(config: ConfigFile, overrides: Overrides = None, json: Json = False) -> None:
    """Check CONFIG, its model folder and its data, down to the loss mask, without training."""
    from intel_ft import config as configuration

    settings = configuration.load(config, overrides)
    from intel_ft.models.load import parameter_count
    from intel_ft.training.setup import read_inputs

    inputs = read_inputs(settings)
    report = inputs.training.report
    show(
        {
            "parameters": parameter_count(inputs.folder),
            "format": report.format,
            "template": report.template,
            "train_examples": report.examples,
            "train_tokens": report.tokens,
            "supervised_tokens": report.supervised_tokens,
            "longest": report.longest,
            "eval_examples": inputs.evaluation and inputs.evaluation.report.examples,
        },
        json,
    )
