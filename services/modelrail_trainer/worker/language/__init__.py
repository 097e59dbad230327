"""Models of language: text files as a stream of bytes, figures about them, and samples."""
