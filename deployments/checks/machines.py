"""What the clouds' machines are called and have: node_config is free-form to Ray."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.checks.documents import dicts_of


@dataclass(frozen=True)
class Machines:
    """A cloud's machines. keys: the parameters of the call that makes one; key: of its type."""

    call: str
    key: str
    keys: frozenset[str]
    gpus: Callable[[dict[str, Any]], int | None]


# Families in which the size decides how many GPUs there are.
_AWS_MANY = {
    "4xlarge": 1, "8xlarge": 1, "12xlarge": 4, "16xlarge": 1, "24xlarge": 4, "48xlarge": 8,
    "metal": 8,
}  # fmt: skip
_AWS_FAMILIES = {"g4dn", "g5", "g6", "g6e"}
_AWS_OTHERS = {
    "g5.48xlarge": 8, "g6.48xlarge": 8, "g6e.48xlarge": 8, "p3.2xlarge": 1, "p3.8xlarge": 4,
    "p3.16xlarge": 8, "p4d.24xlarge": 8, "p4de.24xlarge": 8, "p5.4xlarge": 1, "p5.48xlarge": 8,
    "p5e.48xlarge": 8, "p5en.48xlarge": 8, "p6-b200.48xlarge": 8,
}  # fmt: skip
_GCP_BUILT_IN = {"g2-standard-24": 2, "g2-standard-48": 4, "g2-standard-96": 8}


def _aws_gpus(config: dict[str, Any]) -> int | None:
    """Return an instance type's GPUs, or None for one that is not known here."""
    instance = str(config.get("InstanceType"))
    family, _, size = instance.partition(".")
    if instance in _AWS_OTHERS:
        return _AWS_OTHERS[instance]
    if family in _AWS_FAMILIES:
        return 1 if size in ("xlarge", "2xlarge") else _AWS_MANY.get(size)
    return 0 if re.match(r"^[cmrt]\d", family) else None


def _gcp_gpus(config: dict[str, Any]) -> int | None:
    """Return a machine's GPUs, built in or attached, or None for a type that is not known here."""
    machine = str(config.get("machineType")).rsplit("/", 1)[-1]
    built_in = re.match(r"^a[2-4]-\w+-(\d+)g", machine)
    if built_in:
        return int(built_in[1])
    if machine.startswith("g2-standard-"):
        return _GCP_BUILT_IN.get(machine, 1)
    if re.match(r"^(n1|n2|n2d|n4|e2|c3|c4|c2|t2d)-", machine):
        attached = dicts_of(config.get("guestAccelerators"))
        counts = [str(accelerator.get("acceleratorCount", 0)) for accelerator in attached]
        return sum(map(int, counts)) if all(map(str.isdecimal, counts)) else None
    return None


MACHINES = {
    "aws": Machines(
        call="EC2's RunInstances",
        key="InstanceType",
        keys=frozenset(
            [
                "AdditionalInfo",
                "BlockDeviceMappings",
                "CapacityReservationSpecification",
                "CpuOptions",
                "CreditSpecification",
                "DisableApiStop",
                "DisableApiTermination",
                "EbsOptimized",
                "EnclaveOptions",
                "HibernationOptions",
                "IamInstanceProfile",
                "ImageId",
                "InstanceInitiatedShutdownBehavior",
                "InstanceMarketOptions",
                "InstanceType",
                "KeyName",
                "LaunchTemplate",
                "LicenseSpecifications",
                "MaintenanceOptions",
                "MetadataOptions",
                "Monitoring",
                "NetworkInterfaces",
                "Placement",
                "PrivateDnsNameOptions",
                "SecurityGroupIds",
                "SubnetId",
                "SubnetIds",
                "TagSpecifications",
                "UserData",
            ]
        ),
        gpus=_aws_gpus,
    ),
    "gcp": Machines(
        call="Compute Engine's instances.insert",
        key="machineType",
        keys=frozenset(
            [
                "advancedMachineFeatures",
                "canIpForward",
                "confidentialInstanceConfig",
                "deletionProtection",
                "description",
                "disks",
                "guestAccelerators",
                "labels",
                "machineType",
                "metadata",
                "minCpuPlatform",
                "networkInterfaces",
                "networkPerformanceConfig",
                "params",
                "reservationAffinity",
                "resourcePolicies",
                "scheduling",
                "serviceAccounts",
                "shieldedInstanceConfig",
                "sourceMachineImage",
                "tags",
            ]
        ),
        gpus=_gcp_gpus,
    ),
}
