"""The settings of the trainer."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

from modelrail_server.config import ConfigError, ServerConfig, setting
from modelrail_server.postgresql import postgresql_url
from modelrail_trainer.objects.roots import ObjectRoots

_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig(ServerConfig):
    """Addresses, credentials and limits of the trainer."""

    grpc_address: str = setting("127.0.0.1:8021", "Address for gRPC: HOST:PORT or unix:PATH.")
    metrics_address: str = setting("127.0.0.1:8022", "Address for Prometheus, path /metrics.")
    data_dir: Path = setting(
        Path(".modelrail/trainer"), "Folder for the database and the jobs; one trainer owns it."
    )

    database_url: str = setting(
        "",
        "PostgreSQL database for the jobs, postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE;\n"
        "empty: SQLite in --data-dir. Several trainers may share one. A password on a command\n"
        "line is seen by everybody on the machine: see --database-password-file.",
        secret=True,
    )
    database_password_file: Path | None = setting(None, "File with the password of --database-url.")

    registry: str = setting("127.0.0.1:8011", "Registry that versions are published to, HOST:PORT.")
    registry_api_key_file: Path | None = setting(
        None, "File with the key that the trainer shows to the registry."
    )
    registry_ca_certificate: Path | None = setting(
        None, "PEM file with the authority of the registry's certificate; given, TLS is used."
    )
    data_root: tuple[str, ...] = setting(
        (),
        "Folder below which jobs may read data files; may be given more than once. Without it\n"
        "jobs read no files.",
    )
    object_root: tuple[str, ...] = setting(
        (),
        "Bucket, or folder in one, that jobs may read objects from: s3://BUCKET/FOLDER, gs://… or\n"
        "az://…; may be given more than once. Without it jobs read no objects. Credentials and\n"
        "endpoints are the environment's, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.",
    )
    max_object_bytes: int = setting(
        64 * _GIB,
        "What the copies of objects may take that one job reads. They lie in --data-dir while the\n"
        "job runs.",
        minimum=1,
    )
    max_objects: int = setting(
        100_000,
        "Objects that one job may name or have below the folder of images that it names, whether\n"
        "they are images or not. While they are copied, each takes about 1 kB of memory.",
        minimum=1,
    )
    user_code: tuple[str, ...] = setting(
        (),
        "Folder whose Python modules jobs may name for their model or data; may be given more\n"
        "than once. Without it jobs run no code of their own. What lies there runs in the job's\n"
        "process, as the trainer's user, behind the same walls as every job.",
    )
    max_running_jobs: int = setting(
        1, "Job processes at a time; they share the processor cores.", minimum=1, maximum=1024
    )
    max_queued_jobs: int = setting(
        100,
        "Jobs that may wait for a place or for the registry; more are answered RESOURCE_EXHAUSTED.",
        minimum=1,
        maximum=100_000,
    )
    keep_ended_jobs: int = setting(
        0,
        "How many ended jobs are kept, those that ended last. The others are deleted, with their\n"
        "events, log and folder; their versions stay. 0: all are kept. The same for all trainers\n"
        "on one database.",
        minimum=0,
    )
    dry_run_seconds: float = setting(
        120.0,
        "Seconds that a dry run may take. One runs at a time, beside the jobs.",
        minimum=1,
        maximum=3600,
    )
    inspection_seconds: float = setting(
        60.0,
        "Seconds that a look into a table may take. One runs at a time, beside the jobs.",
        minimum=1,
        maximum=3600,
    )
    second_look_seconds: float = setting(
        600.0,
        "Seconds that the check of a finished job's files may take, before they are published.\n"
        "One runs at a time, beside the jobs.",
        minimum=1,
        maximum=86_400,
    )
    lease_seconds: float = setting(
        30.0,
        "On PostgreSQL, seconds after which a trainer that is not heard of loses its jobs to the\n"
        "others. The same for all trainers on one database.",
        minimum=1,
        maximum=3600,
    )
    cancel_grace_seconds: float = setting(
        10.0,
        "Seconds between SIGTERM and SIGKILL when a job's process is stopped; in them it ends its\n"
        "step and writes a checkpoint.",
        minimum=0,
        maximum=600,
    )
    max_job_file_bytes: int = setting(
        4 * _GIB, "Largest file that a job may write, its log included.", minimum=1 << 20
    )
    job_readable_paths: tuple[str, ...] = setting(
        (),
        "Files and directories that jobs may read beside Python's, the system's and their own,\n"
        "where the kernel has Landlock.",
    )
    max_job_log_bytes: int = setting(
        64 << 20,
        "Output of a job on stdout and stderr; one that writes more fails. 0: no limit.",
        minimum=0,
    )
    max_job_memory_bytes: int = setting(
        0,
        "Memory that each process of a job may ask for (RLIMIT_DATA); 0: no limit. What a job\n"
        "needs depends on its data and model; the smallest needs 0.6 GB for torch and export.\n"
        "Libraries that are refused memory may spin: set a limit of CPU time as well.",
        minimum=0,
    )
    max_job_cpu_seconds: int = setting(
        0, "CPU time in seconds that each process of a job may use; 0: no limit.", minimum=0
    )
    max_job_silence_seconds: int = setting(
        600,
        "Seconds in which a job must get on (rows read, a step made, a stage reached), else it\n"
        "fails as STALLED; ten times its longest pause so far, if that is more. 0: no limit.",
        minimum=0,
    )
    max_job_processes: int = setting(
        4096,
        "Processes and threads that a job may add to those of the trainer's user; 0: no limit.\n"
        "The kernel does not apply it to root.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        """Checks what one field alone cannot tell."""
        ServerConfig.__post_init__(self)
        if self.database_password_file and not self.database_url:
            raise ConfigError("database_password_file", "expected --database-url beside it")

    def database_place(self) -> Path | URL:
        """Returns where the jobs are kept: a file in the data directory, or on PostgreSQL.

        Raises:
            ConfigError: The URL is of another database, or the password cannot be read.
        """
        if not self.database_url:
            return self.data_dir.absolute() / "trainer.sqlite3"
        return postgresql_url(self.database_url, self.database_password_file)

    def data_roots(self) -> list[Path]:
        """Returns the folders of --data-root.

        Raises:
            ConfigError: One is no folder.
        """
        return _folders("data_root", self.data_root)

    def object_roots(self) -> ObjectRoots:
        """Returns what --object-root opens.

        Raises:
            ConfigError: One is no bucket or folder, or the library for them is not installed.
        """
        if self.object_root and importlib.util.find_spec("obstore") is None:
            raise ConfigError(
                "object_root", "expected none without obstore: pip install 'modelrail[objects]'"
            )
        try:
            return ObjectRoots(self.object_root)
        except ValueError as error:
            raise ConfigError("object_root", str(error)) from None

    def code_roots(self) -> list[Path]:
        """Returns the folders of --user-code.

        Raises:
            ConfigError: One is no folder.
        """
        return _folders("user_code", self.user_code)


def _folders(field: str, paths: tuple[str, ...]) -> list[Path]:
    folders = [Path(path).absolute() for path in paths]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(field, f"expected a folder, got {folder}")
    return folders
