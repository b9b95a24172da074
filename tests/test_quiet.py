"""A harmless line of torchao's is kept out of sight, and nothing else of its log is."""

import logging

import pytest

import medtune  # noqa: F401  the filter is set on import


def test_only_the_line_about_compiled_extensions_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torchao")
    with caplog.at_level(logging.WARNING):
        logger.warning("Skipping import of cpp extensions due to incompatible torch version 2.11.0")
        logger.warning("another warning of %s", "torchao")
        logging.getLogger("another").warning("Skipping import of cpp extensions")
    assert [record.message for record in caplog.records] == [
        "another warning of torchao",
        "Skipping import of cpp extensions",
    ]
