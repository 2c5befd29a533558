"""How many copies of the model a job runs, and between which bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omai_ray.errors import ConfigError
from pipelines.job import EmbedJob


@dataclass(frozen=True)
class PoolSize:
    """Actors: never fewer than `least`, nor more than `most`; a job starts with `first`."""

    least: int
    first: int
    most: int

    def fit(self, units: int) -> PoolSize:
        """Return a pool that has no more actors than there are units."""
        return PoolSize(min(self.least, units), min(self.first, units), min(self.most, units))


def reserved_cpus(job: EmbedJob) -> float:
    """Return the CPUs that Ray keeps for one actor."""
    return job.model.num_cpus if job.model.num_gpus else max(1.0, job.model.num_cpus)


def size_pool(job: EmbedJob, nodes: Sequence[Mapping[str, float]], *, own: bool) -> PoolSize:
    """Return the pool of a job on nodes that have these resources free.

    own: that Ray is the job's own, so more than fits now never will. On a shared one, actors that
    the job asks for by number may wait; but what is to be left free is never counted upon.
    Raises ConfigError where not one actor fits and the job should not wait.
    """
    left = {"CPU": job.leave_cpus, "GPU": job.leave_gpus}
    needed = {"CPU": reserved_cpus(job), "GPU": job.model.num_gpus}
    free = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in needed}

    def fits(left: Mapping[str, float]) -> int:
        return math.floor(min(left.get(kind, 0.0) / n for kind, n in needed.items() if n))

    unkept = {kind: max(0.0, free[kind] - left[kind]) for kind in needed}
    fitting = min(fits(unkept), sum(map(fits, nodes)))
    bounded = own or any(left.values())
    if fitting < 1 and (bounded or job.actors is None):
        raise ConfigError(_refusal(job, free, needed))
    if job.actors is None:
        return PoolSize(fitting, fitting, fitting)
    least, most = job.actors, job.max_actors or job.actors
    if bounded:
        least, most = min(least, fitting), min(most, fitting)
    return PoolSize(least, min(max(fitting, least), most), most)


def _refusal(job: EmbedJob, free: Mapping[str, float], needed: Mapping[str, float]) -> str:
    gpus, cpus = needed["GPU"], needed["CPU"]
    copy = " and ".join(f"{n:g} {kind}" for kind, n in (("GPU", gpus), ("CPU", cpus)) if n)
    left = [("--leave-cpus", job.leave_cpus), ("--leave-gpus", job.leave_gpus)]
    kept = "".join(f", {option} {n:g} of them are left" for option, n in left if n)
    labels = ", ".join(f"{key}={value}" for key, value in job.model.placement.items())
    where = f" with the labels {labels}" if labels else ""
    way = "Free some" if kept else "Free some, or give --actors to wait"
    return (
        f"Ray has {free['CPU']:g} CPU and {free['GPU']:g} GPU free{kept}; a copy of "
        f"'{job.model.name}' needs {copy} on one node{where}. {way}"
    )
