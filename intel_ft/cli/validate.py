"""`intel-ft validate`."""

from intel_ft.cli.options import ConfigFile, Json, Overrides, show


def run(config: ConfigFile, overrides: Overrides = None, json: Json = False) -> None:
    """Check CONFIG, its model folder and its data, down to the loss mask, without training."""
    from intel_ft import config as configuration

    settings = configuration.load(config, overrides)
    from intel_ft.models.load import check_folder, load_tokenizer, model_folder, parameter_count
    from intel_ft.training.run import read_data

    folder = model_folder(settings.model)
    check_folder(folder, settings.model)
    training, evaluation = read_data(settings, load_tokenizer(settings.model))
    show(
        {
            "parameters": parameter_count(folder),
            "format": training.report.format,
            "template": training.template,
            "train_examples": len(training.examples),
            "train_tokens": training.report.tokens,
            "supervised_tokens": training.report.supervised_tokens,
            "longest": training.report.longest,
            "eval_examples": None if evaluation is None else len(evaluation.examples),
        },
        json,
    )
