"""What other users of the machine can reach of a local Ray: not its files, and not without its token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, ray
from pathlib import Path
from autocompress.config import SearchSettings
from autocompress.execution.ray_backend import ray_cluster
from autocompress.locked_temp_dir import MARKER
for _ in range(2):
    with ray_cluster(SearchSettings(n_workers=1)):
        place = Path(ray._private.worker._global_node.get_temp_dir_path())
        scratch = next(path for path in place.parents if (path / MARKER).is_file())
        said = {
            "ray": oct(place.stat().st_mode & 0o777),
            "scratch": oct(scratch.stat().st_mode & 0o777),
            "inside": place.is_relative_to(scratch) and place != scratch,
            "token": oct((Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777),
            "mode": os.environ.get("RAY_AUTH_MODE"),
            "answer": ray.get(ray.remote(lambda: 3).remote()),
        }
    print(json.dumps({**said, "left": scratch.exists()}))
"""


def test_rays_files_and_token_are_for_this_user_only(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**environment, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.strip().splitlines()[-2:]:
        said = json.loads(line)
        assert said["scratch"] == "0o700" and said["inside"], "Ray lets all users write into its own folder"
        assert said["token"] == "0o600" and said["mode"] == "token"  # noqa: S105 - a file's mode
        assert said["answer"] == 3
        assert not said["left"]
