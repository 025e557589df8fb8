"""The historic command: python mnist_phased_lstm.py -m BasicLSTMCell | PhasedLSTMCell."""

import sys

try:
    from phased_lstm.cli import main_mnist
except ModuleNotFoundError as error:
    if error.name != "phased_lstm":
        raise
    sys.exit("phased_lstm is not installed; in this folder run: pip install -e '.[train]'")

if __name__ == "__main__":
    sys.exit(main_mnist())
