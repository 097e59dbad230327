"""The trainer: jobs that turn a data set into a published model version.

A job, in the order in which it passes through the rooms:

* `protocol` reads requests, and `spec` is what they ask for, as plain data.
* `rules` finds what is wrong with it.
* `jobs` keeps jobs and their events, and says which change of state may follow which.
* `execution` starts a process for each, watches it, and publishes what it made; `isolation` is what
  the process may not do.
* `worker` is that process: it reads data, learns, exports and proves.
* `handover` is what the process leaves for the service, `failure` why it could not.

What a job can be made of has a room for each kind, which holds its description, its bounds and its
code: `optimizers`, `zoo` (architectures), `encodings` (columns of tables) and `preprocessing`
(steps on rows of numbers). To add one, add it there and as a message to `trainer.proto`;
`tests/contract/test_trainer_specification.py` tells what does not fit together.
"""

import modelrail_server  # noqa: F401 - what it sets must be set before gRPC is imported
