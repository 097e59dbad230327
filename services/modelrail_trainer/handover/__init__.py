"""What the service and the process of a job leave for each other in the job's directory.

Each file has a room: the process's `journal` and `pulse`, the `last_word` of one that trains beside
it, its result (`artifact`, with `evaluation` and `data_summary`), and what errands find
(`inspection`, `verdict`). The service believes none of them: `job_file` opens them, and `record`
reads them field by field.
"""
