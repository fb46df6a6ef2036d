"""The figures of a report, as SVG text for a page that brings its own colors."""
