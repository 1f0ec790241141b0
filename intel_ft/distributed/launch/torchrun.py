"""torchrun without its report of failed ranks, each of which has printed its error itself.

As a program it takes torchrun's arguments.
"""

import logging
import sys

_REPORTS = "torch.distributed.elastic.multiprocessing.api"  # logs how each rank ended


def main(arguments: list[str]) -> None:
    """Run torchrun; a rank that was killed, and so printed nothing, is named in one line."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger(_REPORTS).setLevel(logging.CRITICAL)
    try:
        run.main(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: rank {rank} was ended by {failure.signal_name()}", file=sys.stderr)
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main(sys.argv[1:])
