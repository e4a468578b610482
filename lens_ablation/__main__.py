"""``python -m lens_ablation`` is the ``lens-ablation`` command."""

from lens_ablation.cli import run

if __name__ == "__main__":
    run()
