"""Which of the two methods of real-time chunking a policy uses."""

from ..modeling_kivla import KIVLAConfig
from ..modeling_kivla.real_time_chunking import check_method


def rtc_method(config: KIVLAConfig, wanted: str | None = None, acts_by: str | None = None) -> str | None:
    """What is wanted, or what the policy can best: "trained" if it was trained with delays, else "guidance".

    Args:
        config: the policy's.
        wanted: "guidance", "trained", or None for the policy's best.
        acts_by: "flow" or "tokens"; by default what the policy was trained for.

    Returns:
        The method, or None: a policy that acts by tokens has none.

    Raises:
        ValueError: the policy cannot do what is wanted.
    """
    if (acts_by or config.acts_by) == "tokens":
        if wanted is not None:
            raise ValueError(
                f'Real-time chunking (rtc="{wanted}") is for policies that act by flow, and this one acts by tokens: '
                "leave it out."
            )
        return None
    if wanted is not None:
        check_method(config, wanted)
    return wanted or ("trained" if config.rtc_max_delay else "guidance")


__all__ = ["rtc_method"]
