"""The processes of jobs: where they run, what they print, how they ended."""
