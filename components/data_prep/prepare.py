"""From rows and video files to a prepared data set: plan → shards → merge, each a task of its own.

The plan reads every row once and deals the *files* to shards, so that a video is probed and decoded once for all its
questions and parts. A shard decodes its files in processes that can be killed and stores the frames in parts; a part
that is stored is never done again. The merge decides which rows stay, writes them, and vouches for everything.

No row is lost in silence: what cannot be used is in ``quarantine.jsonl`` with its line and reason, and
``rows_in = rows_out + quarantined + left_out`` is checked before the manifest is written. Nothing holds a list of all
rows, media or files: what has to be remembered of each is in an SQLite file in the scratch folder. Two preparations of
the same thing at once do the same work twice and harm nothing: data files are named by their content, and a record of
finished work names the files that it vouches for.

Below the stage's prefix: ``plan.json`` and ``plan/`` (what the plan decided), ``world/`` (`source: synthesize`),
``shards/`` (what became of each video), and the data set as README.md lists it.
"""

from .merge import merge_data
from .plan import plan_data
from .shard import prepare_shard


def prepare_data(run: str, config: str, video: str) -> str:
    """All of data preparation in this process: plan, every shard, merge. Returns the manifest's URI."""
    shards = plan_data(run, config, video)
    return merge_data(run, config, video, [prepare_shard(run, config, video, shard) for shard in shards])
