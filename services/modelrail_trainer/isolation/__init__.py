"""What holds a job's process: limits and walls that it puts around itself before it works.

`python -m modelrail_trainer.isolation CONFINEMENT COMMAND…` leaves a guard behind, confines itself
and becomes the command. Nothing of that can be done between fork and exec in a parent that has
threads.
"""
