"""Groups of channels, which may be spread over devices."""

from typing import Any

from jax import Array

from jaxnorm._base import checks as check
from jaxnorm._base import collectives as devices
from jaxnorm._base.messages import caller, error


def local_groups(
    num_groups: Any,
    group_size: Any,
    feature_axis: int,
    x: Array,
    axis_name: Any,
    channel_axis_name: Any,
) -> tuple[int, Any]:
    """The number of groups of this device's channels, and the named axes that a group is pooled over.

    `num_groups` counts the groups of all channels, which the axes `channel_axis_name` spread over devices.
    Each group is on one device, or there is one group, which is on all of them.
    """
    if channel_axis_name is None:
        return check.groups(num_groups, group_size, feature_axis, x), axis_name
    channels = devices.bound(channel_axis_name, option="channel_axis_name")
    places = devices.bound(axis_name)
    if both := [name for name in channels.names if name in places.names]:
        problem = f"{both[0]!r} is in axis_name={axis_name!r} and in channel_axis_name={channel_axis_name!r}"
        remedy = (
            "name it once: as axis_name if places are spread over it, as channel_axis_name if channels are"
        )
        raise error(ValueError, problem, remedy)
    count = devices.size(channels)
    groups = check.groups(num_groups, group_size, feature_axis, x, devices=count)
    if groups % count == 0:
        return groups // count, axis_name
    if groups == 1:
        return 1, (axis_name, channel_axis_name)
    problem = f"{groups} groups of channels do not fall on {count} devices of channel_axis_name="
    problem += f"{channel_axis_name!r} as whole groups"
    remedy = (
        f"choose a multiple of {count}, or 1, or make that mesh axis two, one across groups and one within, "
    )
    remedy += f"and call {caller()} with num_groups=1 and the inner one in axis_name"
    raise error(ValueError, problem, remedy)
