"""What people pass to any processor of the library: done here anyway, or refused by name."""

# Options of the library's processors: the values that ask for what is done anyway, and what to say of others
CALL_OPTIONS = {
    "return_tensors": (("pt",), 'batches are PyTorch tensors ("pt").'),
    "padding": ((True, "longest"), "batches are padded to their longest sequence (True)."),
    "truncation": (
        (False, "do_not_truncate"),
        "nothing is cut; long ones are refused (`max_length`).",
    ),
    "max_length": (
        (),
        "it is a setting of the processor: KIVLAProcessor(..., max_length=...).",
    ),
    "videos": ((), "give the images of each camera."),
    "audio": ((), "give images and text."),
}


def check_options(options: dict) -> None:
    """Accept options of other processors that ask for what is done anyway, and refuse all others."""
    for name, value in options.items():
        if name not in CALL_OPTIONS:
            raise TypeError(
                f"KIVLAProcessor() takes no {name!r}. It makes whole batches from images, text, state, actions and "
                "response; images are prepared as `processor.vlm_processor` is set."
            )
        allowed, advice = CALL_OPTIONS[name]
        if value is not None and value not in allowed:
            raise ValueError(f"{name} = {value!r} is not possible here: {advice}")


__all__ = ["check_options"]
