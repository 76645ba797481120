"""The command line: what people type and see."""

import signal


def main() -> None:
    """Run the process's command line and exit."""
    # Ctrl-C shows no traceback while Python still imports the program.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # Under nohup it is ignored.
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    from etl.cli.main import main as run_and_exit

    run_and_exit()
