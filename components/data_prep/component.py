"""The KFP components of data preparation: plan → a task per shard → merge."""

import os

from kfp import dsl

IMAGE = os.environ.get("VTHINK_IMAGE_DATA", "ghcr.io/vthink/vthink-data-python:0.1.0")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_data(run: str, config: str, video: str) -> list[str]:
    """Read the rows and deal them to shards.

    Args:
        run: the run's context, as JSON.
        config: the section ``data``, as JSON.
        video: the section ``video``, as JSON.

    Returns:
        One JSON text per shard, for `prepare_shard`.
    """
    from vthink.components.data_prep import plan

    return plan.plan_data(run, config, video)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_shard(run: str, config: str, video: str, shard: str) -> str:
    """Decode the videos of one shard and store their frames.

    Returns:
        URI of what became of the shard, for `merge_data`.
    """
    from vthink.components.data_prep import shard as shard_module

    return shard_module.prepare_shard(run, config, video, shard)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge_data(run: str, config: str, video: str, shards: list[str], report: dsl.Output[dsl.HTML]) -> str:
    """Put the shards together as one data set.

    Args:
        run: the run's context, as JSON.
        config: the section ``data``, as JSON.
        video: the section ``video``, as JSON.
        shards: what `prepare_shard` returned.
        report: the set as an HTML page.

    Returns:
        URI of the manifest.
    """
    from vthink.components.data_prep import merge

    return merge.merge_data(run, config, video, shards, report.path)
