"""Who computes the shards of a job."""

from lens_ablation.engine.executors.run import run_job

__all__ = ["run_job"]
