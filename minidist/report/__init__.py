"""The run as a page: `minidist report RUN…` writes one HTML file that needs no network, `--serve` follows runs that go on."""
