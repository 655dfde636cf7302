"""The project's compressed archive, `.sqz`; FORMAT.md describes it byte by byte."""
