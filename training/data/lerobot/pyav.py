"""PyAV, which only datasets with videos need."""

try:
    import av
except ImportError as error:
    raise ImportError("Videos need PyAV. Install it with `pip install 'kivla[video]'`.", name=error.name) from error

__all__ = ["av"]
