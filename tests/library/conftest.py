"""The library's tests have marks of their own, which pytest must know, and are looked for in the slow lane only."""

_MARKS = (
    "accelerate_tests",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "generate",
    "torch_compile_test",
)


def pytest_configure(config):
    for mark in _MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")


def pytest_ignore_collect(config):
    """Collecting them downloads them, which the fast lane has no need of."""
    return True if config.option.markexpr == "not slow" else None
